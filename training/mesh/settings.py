"""Settings of the workers of one dictionary: how they split it, and how its states are sharded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, FileSettings


class Divisible(Protocol):
    """Configuration of a dictionary, as far as a mesh asks for it."""

    @property
    def architecture(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def learns_by(self) -> str: ...

    def check_slices(self, slices: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class MeshShape(FileSettings):
    """The workers of one dictionary: data x feature of them."""

    data: Count = 1
    """Workers over which the rows of a batch are split."""
    feature: Count = 1
    """Workers over which latents are split; the width must be a multiple."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig(FileSettings):
    """Sharding of one dictionary's states and batches over its workers."""

    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    """DeepSpeed ZeRO stage; `auto` is 0 for one worker and 1 for more, and with `offload_optimizer`."""
    offload_optimizer: bool = False
    """Keep Adam's moments and the fp32 masters in the host's memory, and step there; for ZeRO stages 1 to 3."""
    micro_batches: Count = 1
    """Parts in which each worker computes its rows of a batch, one after another: less memory, the same result."""
    check_rows: bool = False
    """For debugging: compare the rows that the workers have of every batch, each planned row once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.offload_optimizer and self.zero_stage == 0:
            raise UserError("offload_optimizer: not possible with zero_stage 0; use 1, 2, 3 or auto")


@dataclass(frozen=True, kw_only=True)
class MeshConfig(MeshShape, EngineConfig):
    """The workers of one dictionary. They do not change what it becomes, so they are no part of a trial's identity."""

    def row_parts(self, dictionary: Divisible) -> int:
        """Into how many parts the rows are split: those that learn by statistics split nothing else."""
        return self.data if dictionary.learns_by == "gradient" else self.data * self.feature

    def check(self, dictionary: Divisible) -> None:
        """Raise UserError when this dictionary cannot be split like this."""
        if self.micro_batches > 1 and dictionary.learns_by == "statistics":
            raise UserError(
                f"micro_batches: {self.micro_batches}, but {dictionary.architecture} learns from whole batches; "
                f"set it to 1 by a rule for {dictionary.architecture}"
            )
        if self.row_parts(dictionary) != self.data:
            return
        if dictionary.width % self.feature:
            near = max(self.feature, round(dictionary.width / self.feature) * self.feature)
            raise UserError(
                f"mesh.feature: {self.feature} parts, but the width {dictionary.width:,} is not a multiple of that; "
                f"use {near:,}"
            )
        dictionary.check_slices(self.feature)

    def check_batch(self, batch_rows: int, row_parts: int, lanes: int) -> None:
        """Raise UserError when some worker would have fewer rows of a batch than micro-batches."""
        fewest = (lanes // row_parts) * (batch_rows // lanes)
        if self.micro_batches > fewest:
            raise UserError(f"micro_batches: {self.micro_batches}, but a worker has only {fewest} rows of a batch")

    @property
    def stage(self) -> int:
        if self.zero_stage == "auto":
            return 1 if self.data > 1 or self.offload_optimizer else 0
        return self.zero_stage
