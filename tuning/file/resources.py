"""Blocks of the sweep file about machines: what a trial gets of them, and what they cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from lexray.storage.config_file import FileModel
from lexray.storage.errors import UserError
from lexray.storage.file_settings import MAX_SECONDS, Count, FileSettings
from lexray.training.mesh.settings import EngineConfig, MeshShape


@dataclass(frozen=True, kw_only=True)
class ElasticBlock(FileSettings):
    """Adaptation of a running trial's mesh to the nodes that there are. The trial it becomes is the same."""

    min_data: Count = 1
    """Workers over which rows are split when nodes are lost and the mesh asked for cannot be had; at least so many."""
    max_data: Count | None = None
    """The most workers over which rows are split when nodes join a running sweep; by default those asked for."""
    shrink_after_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 300.0
    """Seconds that a trial waits for nodes that an autoscaler may still add before it goes on with what is left."""
    grow_after_s: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = 60.0
    """Seconds for which there must have been room for more workers before a running trial takes them."""


@dataclass(frozen=True, kw_only=True)
class ResourcesBlock(EngineConfig):
    """Resources of one trial."""

    workers: Count | None = None
    """Workers that split the rows of a batch: short for `mesh: {data: ...}`."""
    mesh: MeshShape | Literal["auto"] | None = None
    """Workers along both axes; `auto` takes the smallest mesh whose workers have room on the cluster's nodes."""
    cpus_per_worker: Annotated[float, Field(gt=0, le=1e6)] = 1
    """CPUs that each worker takes of its node."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """0 trains on CPUs, also beside GPUs; below 1 trials of one worker share a GPU; `auto` is 1 where the cluster has a
    GPU for each worker of the trial, else 0."""
    gpu_memory_gib: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Memory of a GPU of the cluster, for `mesh: auto`; by default that of this machine's, where there is one."""
    timeout_s: Annotated[float, Field(ge=1, le=MAX_SECONDS)] = 600.0
    """Seconds that workers of a trial wait for each other before the silent ones are named and all start again."""
    wait_at_most_s: Annotated[float, Field(gt=0, le=MAX_SECONDS)] | Literal["auto"] = "auto"
    """Seconds that nodes may be missing before the trial that needs them fails with the cause. Waiting for other trials
    does not count. `auto` is 3600 where an autoscaler launches nodes, which costs money while they do not arrive, and
    unbounded elsewhere."""
    elastic: ElasticBlock = field(default_factory=ElasticBlock)
    """Behaviour when nodes are lost or join."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers is not None and self.mesh is not None:
            raise ValueError(f"give `workers` ({self.workers}) or `mesh`, one of the two")

    @property
    def axes(self) -> MeshShape:
        """The workers along both axes; one, as long as `auto` is undecided."""
        return self.mesh if isinstance(self.mesh, MeshShape) else MeshShape(data=self.workers or 1)

    def check_gpus(self) -> None:
        """Raise UserError for GPUs that no worker would use, and for workers of one mesh that would share a GPU."""
        gpus, mesh = self.gpus_per_worker, self.axes
        if gpus == "auto" or gpus in (0, 1):
            return
        if gpus > 1:
            raise UserError(
                f"resources.gpus_per_worker: {gpus:g}, but a worker computes on 1 GPU; give 1, and mesh: "
                f"{{data: {math.ceil(gpus * mesh.data)}, feature: {mesh.feature}}} to train on as many GPUs"
            )
        if mesh.data * mesh.feature > 1:
            raise UserError(
                f"resources.gpus_per_worker: {gpus:g}, but mesh: {{data: {mesh.data}, feature: {mesh.feature}}} has "
                f"{mesh.data * mesh.feature} workers, and NCCL needs 1 GPU for each; give 1, or 0 to train on CPUs, or "
                "train with 1 worker"
            )
        if (self.elastic.max_data or 1) > 1:
            raise UserError(
                f"resources.elastic.max_data: {self.elastic.max_data}, but gpus_per_worker is {gpus:g}, and NCCL "
                "needs 1 GPU for each of several workers; leave max_data out, or give gpus_per_worker: 1"
            )


class PricesBlock(FileModel):
    """Prices of the cluster, for `lexray plan`; what is not given costs nothing."""

    cpu_hour: float = Field(default=0.0, ge=0)
    """Price of one CPU for an hour of a trial."""
    gpu_hour: float = Field(default=0.0, ge=0)
    """Price of one GPU for an hour of a trial."""
    node_hour: float = Field(default=0.0, ge=0)
    """Price of one node for an hour of the sweep."""
    currency: str = "USD"
