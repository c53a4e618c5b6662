"""What one row, one byte and one sum cost on this machine, measured; kept as JSON for the model of a cluster."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.sharding import training_config, write_dataset
from lexray.cluster.commands.step_timer import StepTimer
from lexray.storage.bench import core_speed
from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.storage.windows import StreamSpec
from lexray.training.mesh.settings import MeshConfig

UNCOUNTED_STEPS, COUNTED_STEPS, STEPS_WITHIN_S = 5, 40, 300
SUMS = 12
"""Sums of which the median is taken, after one that is not counted."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Cost of a step of one worker with one thread: R rows take fixed_s + R row_s."""

    fixed_s: float
    row_s: float

    def seconds(self, rows: float) -> float:
        return self.fixed_s + rows * self.row_s


@dataclass(frozen=True, kw_only=True)
class MachineCosts:
    """One machine, one dictionary."""

    cores: int
    load: float
    """Of the machine when measuring began."""
    site_width: int
    width: int
    l0: int
    alone: StepCost
    """When nothing else runs."""
    in_step_s: dict[str, float]
    """Seconds of a step among so many workers that share the batch and wait for each other, without what they sum: they
    share the cores, and the way to memory, which these steps need the most."""
    server_bytes_per_s: float
    """That one core checks and permutes."""
    sum_bytes_per_s: dict[str, float]
    """That a process sends to others in a sum by gloo, by number of processes."""
    hop_latency_s: float
    """Of one hop of such a sum."""

    def step_s(self, rows: float, workers: int) -> float:
        """Return the seconds of a step of one worker with so many rows, or of several that share the batch."""
        return self.alone.seconds(rows) if workers == 1 else self.in_step_s[str(workers)]


def read_costs(file: str) -> MachineCosts:
    """As `write_costs` wrote them."""
    content = json.loads(Path(file).read_text())
    return MachineCosts(alone=StepCost(**content.pop("alone")), **content)


def write_costs(file: str, costs: MachineCosts) -> None:
    Path(file).write_text(json.dumps(asdict(costs), indent=1) + "\n")


def measure_costs(
    *, site_width: int, width: int, l0: int, batch_rows: int, workers: Sequence[int], seconds: float
) -> MachineCosts:
    """About so many seconds for each of three sizes of steps, and for reads; some for steps and sums of `workers`."""
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    sizes = [batch_rows // 4, batch_rows // 2, batch_rows]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = write_dataset(folder, max(2**14, 4 * batch_rows), site_width)
            manifest = load_manifest(store)

            def steps(rows: int) -> Steps:
                return Steps(url=store.url, dataset=manifest.id, width=width, l0=l0, rows=rows)

            alone = fitted(sizes, [rows / steps(rows).timer().trained_rows_per_s(seconds) for rows in sizes])
            several = [count for count in workers if count > 1]
            in_step = {str(count): step_in_step_s(steps(batch_rows // count), count) for count in several}
            core = core_speed(StreamSpec(store=store, sites=("site",)), seconds=seconds)
    finally:
        torch.set_num_threads(threads)
    both = 1e6 / (1 / core.checksum_mb_per_s + 1 / core.permute_mb_per_s)
    size = 4 * parameters(site_width, width)
    sums = {ranks: sum_seconds(ranks, size) for ranks in workers if ranks > 1}
    return MachineCosts(
        cores=cores,
        load=load,
        site_width=site_width,
        width=width,
        l0=l0,
        alone=alone,
        in_step_s=in_step,
        server_bytes_per_s=both,
        sum_bytes_per_s={str(ranks): 2 * (ranks - 1) / ranks * size / taken for ranks, taken in sums.items()},
        hop_latency_s=sum_seconds(2, 4) / 2,
    )


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Steps of one TopK dictionary on this machine."""

    url: str
    dataset: str
    """Its id."""
    width: int
    l0: int
    rows: int

    def timer(self) -> StepTimer:
        config = training_config(
            "topk", self.width, self.l0, self.rows, MeshConfig(), url=self.url, dataset=self.dataset
        )
        return StepTimer(config.data, config.dictionary, load_manifest(Store.at(self.url)))


def step_in_step_s(steps: Steps, workers: int) -> float:
    """The median, over steps of so many processes with one thread each, which wait for each other after every step."""
    spawning = torch.multiprocessing.get_context("spawn")
    barrier, found = spawning.Barrier(workers), spawning.Queue()
    others = [spawning.Process(target=_in_step, args=(steps, barrier, found), daemon=True) for _ in range(workers)]
    for other in others:
        other.start()
    seconds = max(found.get(timeout=STEPS_WITHIN_S) for _ in others)
    for other in others:
        other.join()
    return seconds


def _in_step(steps: Steps, barrier: Any, found: Any) -> None:
    torch.set_num_threads(1)
    timer, taken = steps.timer(), []
    for _ in range(UNCOUNTED_STEPS + COUNTED_STEPS):
        began = time.perf_counter()
        timer.step()
        barrier.wait(STEPS_WITHIN_S)
        taken.append(time.perf_counter() - began)
    found.put(statistics.median(taken[UNCOUNTED_STEPS:]))


def parameters(site_width: int, width: int) -> int:
    """Return the number of parameters of a TopK dictionary."""
    return 2 * width * site_width + width + site_width


def fitted(rows: Sequence[int], seconds: Sequence[float]) -> StepCost:
    """The line through these steps; neither cost is below zero."""
    row_s, fixed_s = np.polyfit(rows, seconds, 1)
    if fixed_s < 0:
        return StepCost(fixed_s=0.0, row_s=float(np.dot(rows, seconds) / np.dot(rows, rows)))
    return StepCost(fixed_s=float(fixed_s), row_s=max(0.0, float(row_s)))


def sum_seconds(ranks: int, size: int) -> float:
    """Median seconds in which so many processes of this machine sum so many bytes by gloo."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_sum, args=(ranks, size, folder), nprocs=ranks)
        return float((Path(folder) / "seconds").read_text())


def _sum(rank: int, ranks: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    values, taken = torch.ones(size // 4), []
    for _ in range(1 + SUMS):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(values)
        taken.append(time.perf_counter() - began)
        values.fill_(1.0)
    if rank == 0:
        (Path(folder) / "seconds").write_text(str(statistics.median(taken[1:])))
    dist.destroy_process_group()
