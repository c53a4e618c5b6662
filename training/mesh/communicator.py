"""Collectives of a group of ranks, the two from which all others are built, and a count of their bytes.

Shapes: any; G ranks of the group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

CPU = torch.device("cpu")


class Communicator(Protocol):
    """A group of ranks, of which this process is one."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """Device on which values must be."""

    def all_sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks (a new tensor, bit for bit the same on each)."""

    def all_gather(self, values: Tensor) -> Tensor:
        """Stack the ranks' tensors, of one shape, in rank order (G, ...)."""


@dataclass
class Traffic:
    """Bytes that this rank contributed to collectives of all groups; logged per step."""

    bytes: int = 0

    def add(self, values: Tensor) -> None:
        self.bytes += values.numel() * values.element_size()


@dataclass(frozen=True)
class ProcessGroup:
    """A process group of torch.distributed."""

    rank: int
    size: int
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None
    """Process group; None for all processes."""
    traffic: Traffic = field(default_factory=Traffic)

    def all_sum(self, values: Tensor) -> Tensor:
        self.traffic.add(values)
        total = values.to(self.device, copy=True, memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        return total.to(values.device)

    def all_gather(self, values: Tensor) -> Tensor:
        self.traffic.add(values)
        mine = values.to(self.device).contiguous().flatten()
        everyones = mine.new_empty(self.size * mine.numel())
        dist.all_gather_into_tensor(everyones, mine, group=self.group)
        return everyones.view(self.size, *values.shape).to(values.device)
