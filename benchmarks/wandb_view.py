"""What W&B costs a sweep when it is absent, refuses connections, hangs, or answers 429 to everything.

The same small sweep is run by `lexray sweep` in turns, a process and a Ray of its own each time. Printed are medians:
seconds that the trials took, of them in training steps, and of the whole command, whose end may wait for W&B, but not
for long. Views live in the command's process, so that it and W&B's own can take nothing from trials but processor time.
What both take more than without W&B, as a share of what all cores had to give while trials ran, is the most by which
they can slow trials that leave no core idle. Busy neighbours change it less than they change seconds.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import yaml

from benchmarks.processor_time import ProcessorTime
from benchmarks.sweep_runs import times_of
from lexray.storage.store import Store
from lexray.storage.writer import DatasetWriter
from lexray.tuning.sweep_folder import DONE, TARGET_MISSED, SweepFolder

SITE_WIDTH, BATCH_ROWS = 256, 1024
WAYS = ("absent", "refusing", "hanging", "answering 429")
COMMAND_TIMEOUT_S = 1800


class Sizes(NamedTuple):
    """Sizes of the sweep."""

    trials: int
    steps: int
    """Of each trial."""
    log: int
    """Steps from one record to the next."""


class Taken(NamedTuple):
    """Seconds of one sweep."""

    trials: float
    """From start to end, added up."""
    training: float
    """Of these, in training steps."""
    command: float
    """From the first line of the command to its exit."""
    processor: float
    """Of all cores, taken by the command's process and W&B's, from their start to their end."""
    cores: float
    """That all cores had to give from the first trial's start to the last one's end."""


class _Limiting(BaseHTTPRequestHandler):
    def answer(self) -> None:
        self.send_response(429)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *args: object) -> None:
        """Be silent."""


@contextmanager
def server(way: str) -> Iterator[str]:
    """Address of a server of that kind; of none that would listen, where it is `refusing`."""
    if way == "answering 429":
        limiting = ThreadingHTTPServer(("127.0.0.1", 0), _Limiting)
        threading.Thread(target=limiting.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{limiting.server_port}"
        limiting.shutdown()
        limiting.server_close()
        return
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if way == "hanging":
            silent.listen(1024)  # connections come, nobody reads them
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


def write_dataset(folder: Path, rows: int) -> str:
    generator = torch.Generator().manual_seed(0)
    writer = DatasetWriter(
        store=Store.at(str(folder)), sites={"site": SITE_WIDTH}, chunk_rows=1024, shard_rows=16 * 1024
    )
    number = torch.arange(rows)
    for part in number.split(16 * 1024):
        values = torch.randn(len(part), SITE_WIDTH, generator=generator)
        columns = {"token_id": part % 50, "position": part % 64, "document": part // 64}
        writer.add({"site": values}, {name: column.numpy() for name, column in columns.items()})
    writer.close()
    return str(folder)


def sweep_content(data: str, output: str, sizes: Sizes, way: str) -> dict[str, object]:
    return {
        "name": "wandb-view",
        "output": output,
        "data": {"url": data, "site": "site", "batch_rows": BATCH_ROWS, "held_out": 0.1},
        "training": {"rows": sizes.steps * BATCH_ROWS, "lr": 0.001},
        "axes": {"architecture": ["topk"], "width": [2048], "target_l0": [8 * 2**n for n in range(sizes.trials)]},
        "resources": {"workers": 1, "cpus_per_worker": 1},
        "every": {"log": sizes.log, "evaluate": 100, "checkpoint": 1000},
        "wandb": {"mode": "disabled" if way == "absent" else "online"},
    }


def run(way: str, content: dict[str, object], folder: Path) -> Taken:
    """One sweep by its command, in a fresh process."""
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content))
    with server(way) as url:
        environment = {**os.environ, "WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "OMP_NUM_THREADS": "1"}
        began = time.perf_counter()
        command = [sys.executable, "-c", "from lexray.cluster.cli import main; main()", "sweep", str(file)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command, env=environment, **pipes) as call, ProcessorTime(call.pid, _is_of_wandb) as used:
            output, _ = call.communicate(timeout=COMMAND_TIMEOUT_S)
        if call.returncode:
            raise RuntimeError(f"{way}: exit code {call.returncode}\n{output}")
        seconds = time.perf_counter() - began
    sweep = SweepFolder.existing(str(content["output"]))
    records = [sweep.read_trial(trial) for trial in sweep.store.list_folders("trials")]
    timings = [record.timing for record in records if record is not None and record.status in (DONE, TARGET_MISSED)]
    if len(timings) != len(records):
        raise RuntimeError(f"{way}: not all trials ended well; see {content['output']}")
    alive = [times_of(str(content["output"]), record).alive for record in records if record is not None]
    together_s = max(one.end_s for one in alive) - min(one.begin_s for one in alive)
    return Taken(
        trials=sum(t["total_s"] for t in timings),
        training=sum(t["train_s"] for t in timings),
        command=seconds,
        processor=used.seconds,
        cores=together_s * (os.cpu_count() or 1),
    )


def _is_of_wandb(process: psutil.Process) -> bool:
    return any("wandb-core" in word or "wandb/bin" in word for word in process.cmdline())


def measure(ways: Sequence[str], rounds: int, sizes: Sizes) -> dict[str, Taken]:
    """Medians of each way, which take turns."""
    taken: dict[str, list[Taken]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as place:
        data = write_dataset(Path(place) / "data", rows=64 * 1024)
        for number in range(rounds):
            first = number % len(ways)
            for way in (*ways[first:], *ways[:first]):
                folder = Path(place) / f"{number}-{ways.index(way)}"
                folder.mkdir()
                taken[way].append(run(way, sweep_content(data, str(folder / "out"), sizes, way), folder))
                print(f"round {number}  {way:14}", *(f"{value:8.1f} s" for value in taken[way][-1]), flush=True)
    return {way: Taken(*map(statistics.median, zip(*turns, strict=True))) for way, turns in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="the first is the base")
    parser.add_argument("--steps", type=int, default=1800, help="of each trial")
    parser.add_argument("--log", type=int, default=10, help="steps from one record to the next")
    options = parser.parse_args()
    medians = measure(options.ways, options.rounds, Sizes(options.trials, options.steps, options.log))
    base = medians[options.ways[0]]
    print(f"\n{'W&B':14} {'trials':>10} {'ratio':>7} {'training':>10} {'ratio':>7} {'command':>10} {'more':>9}", end="")
    print(f" {'processor':>10} {'more, of all cores':>20}")
    for way, taken in medians.items():
        print(
            f"{way:14} {taken.trials:8.1f} s {taken.trials / base.trials:7.3f} {taken.training:8.1f} s "
            f"{taken.training / base.training:7.3f} {taken.command:8.1f} s {taken.command - base.command:+7.1f} s "
            f"{taken.processor:8.1f} s {(taken.processor - base.processor) / base.cores:+20.2%}"
        )


if __name__ == "__main__":
    main()
