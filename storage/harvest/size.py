"""Choose number and size of a harvest's replicas: a pure function of its file and the available resources."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import HarvestFile

AUTO_CPUS = 4
"""CPU threads of a replica on a cluster without GPUs."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """CPUs and GPUs of this machine or a cluster."""

    cpus: int
    gpus: int


@dataclass(frozen=True, kw_only=True)
class PoolSize:
    """Number and size of a harvest's replicas."""

    workers: int
    threads: int
    """CPU threads of each replica."""
    gpus: float
    """GPUs of each replica."""


def choose_size(config: HarvestFile, there: Resources, *, threads: int | None, joins: bool) -> PoolSize:
    """Return number and size of the replicas. `threads` are those of the harvest that is resumed, if any.

    Raises UserError for more than the available resources, unless a cluster is joined, which may grow.
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
    """Return the resources that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Resources(cpus=cpus, gpus=torch.cuda.device_count() if torch.cuda.is_available() else 0)


def resources_of_cluster() -> Resources:
    """Return the current resources of the connected Ray."""
    import ray

    total = ray.cluster_resources()
    return Resources(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)))
