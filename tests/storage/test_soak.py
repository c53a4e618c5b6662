"""10,000 steps: memory stays flat, nothing is spilled, and the end is clean."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_rows

STEPS, WARM_UP_STEPS, EVERY = 10_000, 2_000, 250
STORE_BYTES, KEPT_BYTES, WINDOW_BYTES = 100 * 2**20, 30 * 2**20, 2**16

# The stream's windows pass through an object store that could not hold a fifth of them.
SOAK = """
import json, sys
import psutil, ray
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from lexray.storage.selection import Selection
from lexray.storage.server import ServedWindows, start_server
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import StreamSpec

url, steps, every, store_bytes, kept_bytes, window_bytes = sys.argv[1], *map(int, sys.argv[2:7])
ray.init(num_cpus=2, object_store_memory=store_bytes, log_to_driver=False, include_dashboard=False)
spec = StreamSpec(store=Store.at(url), sites=("x",), selection=Selection(held_out=0.05), window_bytes=window_bytes)
server = start_server(ray.get_runtime_context().get_node_id(), keep_bytes=kept_bytes)
stream = BatchStream(spec=spec, source=ServedWindows(spec, server, "a"), batch_rows=256)
serving, training = psutil.Process(ray.get(server.stats.remote()).pid), psutil.Process()
state = get_state_from_address(ray.get_runtime_context().gcs_address)
for step, rows in enumerate(stream.batches(range(steps), lambda batch: batch.vectors["x"].float().sum()), start=1):
    if step % every == 0:
        store = get_memory_info_reply(state).store_stats
        print(json.dumps({
            "step": step,
            "server": serving.memory_info().rss - serving.memory_info().shared,
            "worker": training.memory_info().rss - training.memory_info().shared,
            "store": store.object_store_bytes_used,
            "spilled": store.spilled_bytes_total,
            "served": stream.stats.bytes_served,
        }), flush=True)
print("done", flush=True)
"""


@pytest.mark.slow
def test_memory_is_flat_over_ten_thousand_steps_and_nothing_is_spilled(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [20_000, 20_000], sites={"x": 128}, chunk_rows=128)
    arguments = [str(written.store.local_path), STEPS, EVERY, STORE_BYTES, KEPT_BYTES, WINDOW_BYTES]
    command = [sys.executable, "-c", SOAK, *map(str, arguments)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [line for line in iter(process.stdout.readline, "done\n") if line or process.poll() is None]
        ended = time.monotonic()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0, errors
        assert time.monotonic() - ended < 30, "the exit is clean and soon"
    records = [json.loads(line) for line in lines]
    assert [record["step"] for record in records] == list(range(EVERY, STEPS + 1, EVERY))
    assert records[-1]["served"] > 5 * STORE_BYTES
    assert {record["spilled"] for record in records} == {0}
    warm = [record for record in records if record["step"] > WARM_UP_STEPS]
    for name in ("server", "worker"):
        values = np.array([record[name] for record in warm], dtype=float)
        assert np.abs(values / np.median(values) - 1).max() <= 0.05, (name, values / 2**20)
    # What lies in the store at one moment depends on how many windows just come and go; its level does not.
    store = np.array([record["store"] for record in warm], dtype=float).reshape(4, -1)
    assert np.abs(store.mean(1) / store.mean() - 1).max() <= 0.05, store / 2**20
    windows = 2 * 16 + 100  # two of each lane are in use, and Ray frees up to 100 objects together
    assert store.max() <= KEPT_BYTES + windows * (WINDOW_BYTES + 2**13)
