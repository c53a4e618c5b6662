"""Blocks of the sweep file about machines: what a trial gets of them, and what they cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lexray.storage.config_file import MAX_SECONDS, FileModel


class MeshBlock(FileModel):
    """The workers of one dictionary: data x feature of them."""

    data: int = Field(default=1, gt=0)
    """Parts into which the rows of a batch are split."""
    feature: int = Field(default=1, gt=0)
    """Parts into which the latents are split; the width must be a multiple."""


class ElasticBlock(FileModel):
    """How the mesh of a running trial follows the nodes that there are. The trial it becomes is the same."""

    min_data: int = Field(default=1, gt=0)
    """Workers over which rows are split when nodes are lost and the mesh asked for cannot be had; at least so many."""
    max_data: int | None = Field(default=None, gt=0)
    """The most workers over which rows are split when nodes join a running sweep; by default those asked for."""
    shrink_after_s: float = Field(default=300.0, ge=0, le=MAX_SECONDS)
    """How long a trial waits for nodes that an autoscaler may still add before it goes on with what is left."""
    grow_after_s: float = Field(default=60.0, ge=0, le=MAX_SECONDS)
    """How long there must have been room for more workers before a running trial takes them."""


class ResourcesBlock(FileModel):
    """What one trial gets."""

    workers: int | None = Field(default=None, gt=0)
    """Workers that split the rows of a batch: short for `mesh: {data: ...}`."""
    mesh: MeshBlock | Literal["auto"] | None = None
    """Workers along both axes; `auto` takes the smallest mesh whose workers have room on the cluster's nodes."""
    cpus_per_worker: float = Field(default=1, gt=0, le=1e6)
    gpus_per_worker: float = Field(default=0, ge=0)
    gpu_memory_gib: float | None = Field(default=None, gt=0, le=1e6)
    """Memory of a GPU of the cluster, for `mesh: auto`; by default that of this machine's, where there is one."""
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    offload_optimizer: bool = False
    """Keep the optimizer's state in the host's memory and step there; for ZeRO stages 1 to 3."""
    micro_batches: int = Field(default=1, gt=0)
    """Parts in which each worker computes its rows of a batch, one after another: less memory, the same result."""
    check_rows: bool = False
    """For debugging: compare the rows that the workers have of every batch, each planned row once."""
    timeout_s: float = Field(default=600.0, ge=1, le=MAX_SECONDS)
    """How long the workers of a trial wait for each other before the silent ones are named and all start again."""

    elastic: ElasticBlock = ElasticBlock()
    """What happens when nodes are lost or join."""

    @model_validator(mode="after")
    def _one_mesh(self) -> ResourcesBlock:
        if self.workers is not None and self.mesh is not None:
            raise ValueError(f"give `workers` ({self.workers}) or `mesh`, one of the two")
        return self

    @property
    def axes(self) -> MeshBlock:
        """The workers along both axes; one, as long as `auto` is undecided."""
        return self.mesh if isinstance(self.mesh, MeshBlock) else MeshBlock(data=self.workers or 1)


class PricesBlock(FileModel):
    """What the cluster costs, for `lexray plan`; what is not given costs nothing."""

    cpu_hour: float = Field(default=0.0, ge=0)
    """Of one CPU while a trial has it."""
    gpu_hour: float = Field(default=0.0, ge=0)
    """Of one GPU while a trial has it."""
    node_hour: float = Field(default=0.0, ge=0)
    """Of one node for as long as the sweep runs."""
    currency: str = "USD"
