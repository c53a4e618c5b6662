"""Window servers and workers are killed at random points: the rows that each rank sees are those of an undisturbed run.

A worker that was killed is started again with nothing but the step that it had come to.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
from synthetic import write_rows

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.selection import Selection
from lexray.storage.server import ServedWindows, start_server
from lexray.storage.stream import BatchStream, local_stream
from lexray.storage.windows import StreamSpec

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not find the folders of tests

BATCH_ROWS, LANES, STEPS, PIECE = 24, 4, 120, 10
SEEDS = range(20)
QUICK = 1


class Worker:
    """One rank: serves pieces of the training, and ends without a word when it is told to."""

    def __init__(self, spec: StreamSpec, server: Any, rank: int, num_ranks: int) -> None:
        source = ServedWindows(spec, server, str(rank))
        self._stream = BatchStream(spec=spec, source=source, batch_rows=BATCH_ROWS, rank=rank, num_ranks=num_ranks)

    def train(self, steps: range, die_at: int | None) -> list[list[int]]:
        """Row ids of these batches."""
        seen = []
        for step, ids in zip(steps, self._stream.batches(steps, lambda batch: batch.row_ids.tolist()), strict=False):
            if step == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(ids)
        return seen


def train_to_the_end(spec: StreamSpec, server: Any, rank: int, num_ranks: int, deaths: set[int]) -> list[list[int]]:
    """All steps of a rank; it dies once at each step in `deaths` and goes on from the last whole piece."""
    seen: list[list[int]] = []
    worker: Any = None
    while len(seen) < STEPS:
        if worker is None:
            worker = ray.remote(Worker).options(num_cpus=0).remote(spec, server, rank, num_ranks)
        steps = range(len(seen), len(seen) + PIECE)  # the step is all that a new worker gets to know
        death = min(deaths & set(steps), default=None)
        try:
            seen += ray.get(worker.train.remote(steps, death))
        except ray.exceptions.RayActorError:
            assert death is not None
            deaths.remove(death)
            worker = None
    ray.kill(worker)
    return seen


def kill_now_and_then(server: Any, pauses_s: list[float], killed: list[int]) -> None:
    """Kill the server's process after each pause; Ray starts it anew."""
    for pause_s in pauses_s:
        time.sleep(pause_s)
        try:
            pid = ray.get(server.stats.remote()).pid
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
        except (ray.exceptions.RayActorError, ProcessLookupError):
            continue  # it is being started just now


@pytest.fixture
def serve(ray_session: str) -> Iterator[Any]:
    servers = []

    def start(keep_bytes: int, cache: CacheSettings | None) -> Any:
        servers.append(start_server(ray.get_runtime_context().get_node_id(), keep_bytes=keep_bytes, cache=cache))
        return servers[-1]

    yield start
    for server in servers:
        ray.kill(server)


@pytest.mark.parametrize("seed", [pytest.param(s, marks=[pytest.mark.slow] if s >= QUICK else []) for s in SEEDS])
def test_kills_change_nothing_of_what_each_rank_sees(seed: int, serve: Any, tmp_path: Path) -> None:
    rng = random.Random(seed)
    written = write_rows(tmp_path / "data", [131, 97, 61, 151, 89, 113, 71], special=None)
    spec = StreamSpec(
        store=written.store, sites=("x",), selection=Selection(held_out=0.1), lanes=LANES, window_bytes=192, seed=seed
    )
    cache = CacheSettings(dir=str(tmp_path / "cache"), bytes=2**20) if seed % 2 else None
    server = serve(rng.choice([500, 2**20]), cache)
    num_ranks = 1 + seed % 3
    seen: dict[int, list[list[int]]] = {}

    def run(rank: int, deaths: set[int]) -> None:
        seen[rank] = train_to_the_end(spec, server, rank, num_ranks, deaths)

    killed: list[int] = []
    pauses_s = [rng.random() for _ in range(2)]
    threads = [threading.Thread(target=kill_now_and_then, args=(server, pauses_s, killed))]
    for rank in range(num_ranks):
        deaths = set(rng.sample(range(STEPS), 1 if rank < 2 else 0))
        threads.append(threading.Thread(target=run, args=(rank, deaths)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert killed
    for rank in range(num_ranks):
        undisturbed = local_stream(spec, batch_rows=BATCH_ROWS, rank=rank, num_ranks=num_ranks)
        assert seen[rank] == [undisturbed.batch(step).row_ids.tolist() for step in range(STEPS)]


def test_mapped_windows_outlive_the_server_that_made_them(serve: Any, tmp_path: Path) -> None:
    written = write_rows(tmp_path, 400)
    spec = StreamSpec(store=written.store, sites=("x",), selection=Selection(part="all"), lanes=1, window_bytes=640)
    server = serve(2**20, None)
    stream = BatchStream(spec=spec, source=ServedWindows(spec, server), batch_rows=5)
    stream.batch(0)
    (window,) = stream._held.values()
    before = window.vectors["x"].tobytes()
    os.kill(ray.get(server.stats.remote()).pid, signal.SIGKILL)
    while ray.get(server.stats.remote()).windows_read:
        time.sleep(0.01)
    filler = [ray.put(bytes(2**20)) for _ in range(20)]  # whatever else comes to lie in the object store
    assert window.vectors["x"].tobytes() == before
    del filler
    assert [stream.batch(step).row_ids.tolist() for step in range(1, 80)] == [
        local_stream(spec, batch_rows=5).batch(step).row_ids.tolist() for step in range(1, 80)
    ]
