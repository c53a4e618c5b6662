"""The two axes of a mesh, as a dictionary sees them.

A dictionary owns a slice of the latents and sees a slice of the batch's rows. What crosses slices it asks of two
objects: `latents` (the feature axis) and `rows` (the data axis). In one process both are the named trivial objects
`ALL_LATENTS` and `ALL_ROWS`, so the same lines run everywhere. None of the row operations carries gradient: gradients
of different rows are summed by the engine.

Shapes: B rows on this rank, F latents on this rank, N chosen (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Chosen(NamedTuple):
    """Chosen latents of every row, row after row."""

    latents: Tensor
    """Index of each chosen latent (N), int64."""
    offsets: Tensor
    """Where each row's run begins, and the end of the last (B + 1), int64."""

    @property
    def rows(self) -> Tensor:
        """Row of each chosen pair (N), int64."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


class Rows(Protocol):
    """The data axis."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks; any shape."""

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """The k-th largest of all ranks' values (any number each, all >= 0); zero when there are fewer. Scalar."""

    def gather(self, values: Tensor) -> Tensor:
        """The ranks' tensors (same shape on each) one after another along the first dimension."""


class Latents(Protocol):
    """The feature axis."""

    def slice_of(self, width: int) -> slice:
        """Which latents of a dictionary of `width` this rank owns."""

    def topk(self, scores_BF: Tensor, k: int) -> Chosen:
        """The k largest of every row over all latents; those that this rank owns, as local indices."""

    def argmax(self, scores_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The largest score of every row over all latents, and its local index (-1 where another rank owns it): (B)."""

    def sum(self, partial_BD: Tensor) -> Tensor:
        """Sum of partial reconstructions over the slices, with gradient."""


@dataclass(frozen=True)
class AllRows:
    """One process sees the whole batch."""

    size: int = 1

    def sum(self, values: Tensor) -> Tensor:
        return values

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        if len(values) < k:
            return values.new_zeros(())
        return torch.topk(values, k, sorted=False).values.amin()

    def gather(self, values: Tensor) -> Tensor:
        return values


@dataclass(frozen=True)
class SplitRows:
    """The batch is split over a process group."""

    size: int
    group: dist.ProcessGroup | None = None
    """None is all processes."""

    def sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        # The k largest overall are among every rank's k largest; short lists are padded with zeros.
        mine = values.new_zeros(k)
        best = torch.topk(values, min(k, len(values)), sorted=False).values
        mine[: len(best)] = best
        everyones = values.new_empty(self.size * k)
        dist.all_gather_into_tensor(everyones, mine, group=self.group)
        return torch.topk(everyones, k, sorted=False).values.amin()

    def gather(self, values: Tensor) -> Tensor:
        everyones = values.new_empty(self.size * len(values), *values.shape[1:])
        dist.all_gather_into_tensor(everyones, values.contiguous(), group=self.group)
        return everyones


@dataclass(frozen=True)
class AllLatents:
    """One process owns every latent."""

    def slice_of(self, width: int) -> slice:
        return slice(0, width)

    def topk(self, scores_BF: Tensor, k: int) -> Chosen:
        latents = torch.topk(scores_BF, k, dim=1, sorted=False).indices
        return Chosen(latents.flatten(), torch.arange(0, len(scores_BF) * k + 1, k, device=scores_BF.device))

    def argmax(self, scores_BF: Tensor) -> tuple[Tensor, Tensor]:
        best = scores_BF.max(dim=1)
        return best.values, best.indices

    def sum(self, partial_BD: Tensor) -> Tensor:
        return partial_BD


ALL_ROWS = AllRows()
ALL_LATENTS = AllLatents()
