"""How many replicas a harvest has, and of which size: a pure function of its file and what there is."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import HarvestFile

AUTO_CPUS = 4
"""Threads of a replica on a cluster without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """Of this machine or a cluster."""

    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """Of a harvest's replicas."""

    workers: int
    threads: int
    """CPU threads of each."""
    gpus: float
    """GPUs of each."""


def choose_size(config: HarvestFile, there: Resources, *, threads: int | None, joins: bool) -> PoolSize:
    """How many replicas of which size. `threads` are those that the harvest began with, if it goes on.

    Raises UserError for more than there is, unless a cluster is joined, which may grow.
    """
    gpus = float(there.gpus > 0) if config.gpus_per_worker == "auto" else config.gpus_per_worker
    given = None if config.cpus_per_worker == "auto" else config.cpus_per_worker
    cpus = threads or given or (min(AUTO_CPUS, there.cpus) if joins and not gpus else None)
    if config.workers != "auto":
        workers = config.workers
    elif gpus:
        workers = int(there.gpus / gpus)
    else:
        workers = there.cpus // max(1, cpus or 1) if joins else 1
    if config.workers == "auto" and workers < 1:
        raise UserError(
            f"gpus_per_worker: {gpus:g}, but there are {there.gpus} GPUs; lower it, or say how many workers"
        )
    size = PoolSize(workers=workers, threads=cpus or max(1, there.cpus // workers), gpus=gpus)
    if not joins and workers > 1:
        _check_fits(size, there)
    return size


def _check_fits(size: PoolSize, there: Resources) -> None:
    for what, each, total in (("CPUs", size.threads, there.cpus), ("GPUs", size.gpus, there.gpus)):
        if size.workers * each > total:
            raise UserError(
                f"workers: {size.workers} with {each:g} {what} each need {size.workers * each:g}, "
                f"but this machine has {total}; lower workers or {what.lower()}_per_worker"
            )


def resources_of_machine() -> Resources:
    """What this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Resources(cpus=cpus, gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0)


def resources_of_cluster() -> Resources:
    """What the connected Ray has now."""
    import ray

    total = ray.cluster_resources()
    return Resources(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)))
