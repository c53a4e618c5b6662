"""The mesh and the GPUs of a trial that leaves them open: the smallest mesh whose workers fit the nodes at hand.

And the meshes on which a trial may go on when nodes come and go. Pure functions. The choices are made once, before a
sweep starts; on a GPU only the rounding of a dictionary differs.

Slices of the latents come first, since they shrink everything and, inside a node, talk over its fastest links; rows are
split where a node has no more workers. The ZeRO stage is the one given, or 1: stage 3 holds less between steps and more
in them. The number of workers does not change what a dictionary becomes, so the choice is no part of its identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest
from lexray.storage.units import gib
from lexray.training.config import TrainingConfig
from lexray.training.cost.memory import Needs, needs
from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.file.resources import ElasticBlock
from lexray.tuning.placement.allocator import MeshOption, MeshOptions
from lexray.tuning.placement.nodes import Node, most_in_one_zone, place
from lexray.tuning.trials import Footprint, Trial

USABLE = 0.9
"""Share of a memory that training may fill; the rest is for fragmentation and libraries."""
MAX_WORKERS = 1024


@dataclass(frozen=True, kw_only=True)
class WorkerCapacity:
    """Capacity of a node for workers of a trial."""

    workers: int
    """Workers that fit the empty node by CPUs and GPUs."""
    host_bytes: int
    """Host memory of each worker."""
    gpu_bytes: int | None = None
    """GPU memory of each worker; None for workers on CPUs."""
    zone: str | None = None
    """Zone of the node: all workers of a trial share one."""


class Option(NamedTuple):
    """A mesh and what each of its workers needs."""

    mesh: MeshConfig
    needs: Needs


Estimate = Callable[[MeshConfig], Needs]


def meshes(
    config: TrainingConfig, capacities: Sequence[WorkerCapacity], max_workers: int = MAX_WORKERS
) -> Iterator[MeshConfig]:
    """Yield every mesh that the dictionary allows and the nodes have workers for, in order of preference."""
    widest = max((capacity.workers for capacity in capacities), default=0)
    most = most_in_one_zone((capacity.zone, capacity.workers) for capacity in capacities)
    for workers in range(1, min(most, max_workers) + 1):
        for feature in range(min(workers, widest), 0, -1):
            if workers % feature:
                continue
            data = workers // feature
            if most_in_one_zone((capacity.zone, capacity.workers // feature) for capacity in capacities) >= data:
                mesh = replace(config.mesh, data=data, feature=feature)
                if is_allowed(config, mesh):
                    yield mesh


def is_allowed(config: TrainingConfig, mesh: MeshConfig) -> bool:
    """Return whether the mesh can shard this dictionary and its rows."""
    parts = mesh.row_parts(config.dictionary)
    try:
        mesh.check(config.dictionary)
        mesh.check_batch(config.data.batch_rows, parts, config.data.lanes)
    except UserError:
        return False
    return parts <= config.data.lanes


def choose_mesh(
    config: TrainingConfig,
    capacities: Sequence[WorkerCapacity],
    estimate: Estimate,
    name: str,
    max_workers: int = MAX_WORKERS,
) -> MeshConfig:
    """Return the first mesh whose workers fit every usable node. Raises UserError with numbers if none does."""
    leanest: Option | None = None
    for mesh in meshes(config, capacities, max_workers):
        option = Option(mesh, estimate(mesh))
        if _fits(option.needs, capacities):
            return mesh
        if leanest is None or _pressing(option.needs, capacities) < _pressing(leanest.needs, capacities):
            leanest = option
    raise UserError(f"resources.mesh: {_refusal(leanest, capacities, name)}")


def _fits(wanted: Needs, capacities: Sequence[WorkerCapacity]) -> bool:
    return _pressing(wanted, capacities) <= 1


def _pressing(wanted: Needs, capacities: Sequence[WorkerCapacity]) -> float:
    """Return the largest ratio of a worker's memory to the usable memory of the smallest node."""
    host = [wanted.host / (USABLE * capacity.host_bytes) for capacity in capacities]
    return max(host + [wanted.device / (USABLE * capacity.gpu_bytes) for capacity in capacities if capacity.gpu_bytes])


def _refusal(leanest: Option | None, capacities: Sequence[WorkerCapacity], name: str) -> str:
    if leanest is None:
        return (
            f"auto, but no node has the CPUs and GPUs of one worker of trial {name}; lower resources.cpus_per_worker "
            "or resources.gpus_per_worker"
        )
    mesh, wanted = leanest
    shape = f"{mesh.data} x {mesh.feature} workers (data x feature, ZeRO {mesh.stage})"
    gpu = min((capacity.gpu_bytes for capacity in capacities if capacity.gpu_bytes), default=0)
    host = min(capacity.host_bytes for capacity in capacities)
    on_gpu = gpu and wanted.device > USABLE * gpu
    need, have, kind = (wanted.device, gpu, "GPU memory") if on_gpu else (wanted.host, host, "memory")
    return (
        f"auto, but trial {name} needs {gib(need)} of {kind} for each of {shape}, the leanest mesh here, and a worker "
        f"has {gib(int(USABLE * have))} of it ({USABLE:.0%} of {gib(have)}); add nodes or larger ones, or use "
        + ("resources.offload_optimizer, resources.micro_batches or " if on_gpu else "")
        + "a smaller data.batch_rows or width"
    )


def capacities_of(nodes: Sequence[Node], footprint: Footprint, gpu_bytes: int | None) -> list[WorkerCapacity]:
    """Return the nodes' capacity for such workers, if all are busy. Raises UserError if the GPU memory is unknown."""
    on_gpu = footprint.on_gpu
    if on_gpu and gpu_bytes is None:
        raise UserError(
            "resources.mesh: auto needs to know the memory of the cluster's GPUs, and this machine has none; give "
            "resources.gpu_memory_gib, or resources.gpus_per_worker: 0 to train on CPUs"
        )
    of_gpu = int((gpu_bytes or 0) * min(1.0, footprint.gpus_per_worker)) if on_gpu else None
    counted = ((node, node.workers(footprint)) for node in nodes)
    return [
        WorkerCapacity(workers=workers, host_bytes=int(node.memory_bytes / workers), gpu_bytes=of_gpu, zone=node.zone)
        for node, workers in counted
        if workers
    ]


def with_mesh(trial: Trial, manifest: Manifest, capacities: Callable[[Footprint], Sequence[WorkerCapacity]]) -> Trial:
    """Return the trial with its mesh chosen, if open; `capacities` returns the nodes' capacity for its workers."""
    if not trial.auto_mesh:
        return trial
    config, on_gpu = trial.config, trial.footprint.on_gpu
    sites = config.data.sites_in(manifest)
    mesh = choose_mesh(
        config,
        capacities(trial.footprint),
        lambda mesh: needs(replace(config, mesh=mesh), sites, on_gpu=on_gpu),
        trial.name,
        max_workers=1 if trial.footprint.gpus_per_worker % 1 else MAX_WORKERS,  # NCCL: no two of them on one GPU
    )
    return trial.on_mesh(mesh)


def mesh_options_of(trial: Trial, elastic: ElasticBlock, has_room: Callable[[Trial], bool]) -> MeshOptions:
    """Return the mesh options of a trial whose mesh is chosen; `has_room` checks that workers fit the nodes' memory.

    Only the split of rows varies, not that of latents: results differ by rounding only.
    """
    asked = trial.config.mesh
    numbers = range(max(asked.data, elastic.max_data or 0), min(asked.data, elastic.min_data) - 1, -1)
    tried = [trial.on_mesh(replace(asked, data=data)) for data in numbers]
    allowed = [t for t in tried if t.config.mesh == asked or (is_allowed(t.config, t.config.mesh) and has_room(t))]
    mesh_options = tuple(MeshOption(mesh=t.config.mesh, footprint=t.footprint) for t in allowed)
    return MeshOptions(
        all=mesh_options,
        preferred=[option.mesh for option in mesh_options].index(asked),
        shrink_after_s=elastic.shrink_after_s,
        grow_after_s=elastic.grow_after_s,
    )


def with_gpus(trial: Trial, nodes: Sequence[Node]) -> Trial:
    """Return the trial with its GPUs chosen, if it leaves them open: one for each of its workers, or none.

    It gets them where the empty nodes have a GPU and the CPUs for each worker of its mesh; of a mesh that is open as
    well, for one worker. Trials that need the same GPU take turns.
    """
    if not trial.auto_gpus:
        return trial
    workers, group = (1, 1) if trial.auto_mesh else (trial.footprint.workers, trial.config.mesh.feature)
    wanted = replace(trial.footprint, workers=workers, gpus_per_worker=1.0)
    has_room = place(wanted, group, {str(number): node for number, node in enumerate(nodes)}) is not None
    return replace(trial, footprint=replace(trial.footprint, gpus_per_worker=float(has_room)), auto_gpus=False)


def gpu_lines(before: Sequence[Trial], decided: Sequence[Trial], nodes: Sequence[Node]) -> list[str]:
    """Return lines that describe the choices, where nodes have GPUs; `decided` are the trials `before`, in order."""
    chosen = [now.footprint for was, now in zip(before, decided, strict=True) if was.auto_gpus]
    gpus, on_cpus = sum(node.gpus for node in nodes), [footprint for footprint in chosen if not footprint.on_gpu]
    if not chosen or not gpus:
        return []
    lines = [f"gpus_per_worker: auto gives {len(chosen) - len(on_cpus)} of {len(chosen)} trial(s) 1 GPU a worker"]
    if on_cpus:
        most = max(footprint.workers for footprint in on_cpus)
        lines.append(
            f"{len(on_cpus)} trial(s) of up to {most} worker(s) train on CPUs: the {len(nodes)} node(s) with {gpus:g} "
            "GPU(s) have no room for a GPU and the CPUs of each worker"
        )
    return lines
