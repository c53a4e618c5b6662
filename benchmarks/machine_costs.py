"""What one row, one byte and one sum cost on this machine, measured; kept as JSON for the model of a cluster."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing

from benchmarks.sharding import training_config, write_dataset
from cluster.step_timer import StepTimer
from storage.bench import core_speed
from storage.manifest import load_manifest
from storage.store import Store
from storage.windows import StreamSpec
from training.config import MeshConfig

STARTED_WITHIN_S, FOREVER_S = 120, 10_000.0
SUMS = 12
"""Sums of which the median is taken, after one that is not counted."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Of one worker with one thread: a step of R rows takes fixed_s + R row_s."""

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
    in_company: StepCost
    """When every other core takes the same steps: they share the way to memory, which these steps need the most."""
    server_bytes_per_s: float
    """That one core checks and permutes."""
    sum_bytes_per_s: dict[str, float]
    """That a process sends to others in a sum by gloo, by number of processes."""
    hop_latency_s: float
    """Of one hop of such a sum."""

    def step_s(self, rows: float, workers: int) -> float:
        """Of one of so many workers on this machine, each with such a part of the batch."""
        cost = self.alone if workers == 1 else self.in_company
        return cost.seconds(rows) * max(1.0, workers / self.cores)


def read_costs(file: str) -> MachineCosts:
    """As `write_costs` wrote them."""
    content = json.loads(Path(file).read_text())
    steps = {name: StepCost(**content.pop(name)) for name in ("alone", "in_company")}
    return MachineCosts(**content, **steps)


def write_costs(file: str, costs: MachineCosts) -> None:
    Path(file).write_text(json.dumps(asdict(costs), indent=1) + "\n")


def measure_costs(
    *, site_width: int, width: int, l0: int, batch_rows: int, workers: Sequence[int], seconds: float
) -> MachineCosts:
    """About so many seconds for each of six kinds of steps and for the reads; a few for sums among `workers`."""
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

            alone = fitted(sizes, [steps(rows).step_s(seconds) for rows in sizes])
            beside = []
            for rows in sizes:
                with company(cores - 1, steps(rows)):
                    beside.append(steps(rows).step_s(seconds))
            in_company = fitted(sizes, beside)
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
        in_company=in_company,
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

    def step_s(self, seconds: float) -> float:
        """The median, of about so many seconds."""
        config = training_config(
            "topk", self.width, self.l0, self.rows, MeshConfig(), url=self.url, dataset=self.dataset
        )
        manifest = load_manifest(Store.at(self.url))
        return self.rows / StepTimer(config.data, config.dictionary, manifest).trained_rows_per_s(seconds)


@contextmanager
def company(processes: int, steps: Steps) -> Iterator[None]:
    """Inside, so many processes take the same steps, each with one thread."""
    spawning = torch.multiprocessing.get_context("spawn")
    busy = spawning.Semaphore(0)
    others = [spawning.Process(target=_keep_on, args=(steps, busy), daemon=True) for _ in range(processes)]
    try:
        for other in others:
            other.start()
        for _ in others:
            if not busy.acquire(timeout=STARTED_WITHIN_S):
                raise RuntimeError(f"a process to measure beside did not start within {STARTED_WITHIN_S} s")
        yield
    finally:
        for other in others:
            other.kill()
            other.join()


def _keep_on(steps: Steps, busy: Any) -> None:
    torch.set_num_threads(1)
    steps.step_s(1.0)
    busy.release()
    steps.step_s(FOREVER_S)


def parameters(site_width: int, width: int) -> int:
    """Of a TopK dictionary."""
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
