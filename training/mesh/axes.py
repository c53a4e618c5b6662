"""Axes of a mesh: the interface through which a dictionary communicates.

A dictionary owns a slice of the latents and sees a slice of the batch's rows. Operations across slices go through three
objects: `latents` (the feature axis), `rows` (the data axis) and `pairs` (both: every row with every latent). In one
process they are the trivial objects of `ONE_PROCESS`, so the same code runs everywhere; those of a mesh are in
`lexray.training.mesh.split_axes`.

All ranks of a feature group see the same rows and compute the same loss. So the backward pass of a sum over latents is
the identity, and a replicated parameter (a bias of the output) passes through `copy_to_axis` where it enters
computations on a slice: its gradient is all-reduced. No row operation carries gradient: gradients of different rows are
summed by the engine.

Shapes: B rows on this rank, F latents on this rank, N chosen (row, latent) pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """Chosen latents of every row, row after row."""

    latents: Tensor
    """Index of each chosen latent among this rank's (N), int64."""
    offsets: Tensor
    """Start of each row's run, and the end of the last (B + 1), int64."""

    @property
    def rows(self) -> Tensor:
        """Row of each chosen pair (N), int64."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


class DataAxis(Protocol):
    """The data axis."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def all_reduce(self, values: Tensor) -> Tensor:
        """Element-wise sum over the ranks; any shape."""

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate the ranks' tensors (same shape on each) along the first dimension."""

    def exclusive_sum(self, count: int) -> int:
        """Exclusive prefix sum over ranks."""


class FeatureAxis(Protocol):
    """The feature axis."""

    @property
    def size(self) -> int:
        """Number of slices."""

    def slice_of(self, width: int) -> slice:
        """Return the slice of the latents of a dictionary of `width` that this rank owns."""

    def topk(self, scores_BF: Tensor, k: int) -> Chosen:
        """Return this rank's share of each row's k largest over all latents; the first of equal ones."""

    def argmax(self, scores_BF: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's largest score over all latents and its global index (the first of equal ones): (B)."""

    def owned(self, latents: Tensor, num_owned: int) -> Tensor:
        """Map global latent indices to local ones, of `num_owned`; -1 where another rank owns the latent."""

    def global_rank(self, scores_BK: Tensor) -> Tensor:
        """Return the rank of each score within its row over all slices, the largest at 0; -inf is no score: (B, K)."""

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Sum of partial values over the slices, with gradient; any shape."""

    def copy_to_axis(self, whole: Tensor) -> Tensor:
        """Return a replicated tensor for use on a slice: identity forward, all-reduce backward."""

    def gather(self, values: Tensor) -> Tensor:
        """Concatenate the slices' tensors (same shape on each) along the first dimension."""

    def count(self, number: int) -> int:
        """Sum of a number over the slices."""

    def exclusive_sum(self, count: int) -> int:
        """Exclusive prefix sum over slices."""


class WorldAxis(Protocol):
    """Both axes at once."""

    def gather(self, values: Tensor) -> Tensor:
        """Stack the ranks' values (same shape on each): (ranks, ...)."""

    def count(self, number: int) -> int:
        """Sum of a number over all ranks."""

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """Return the k-th largest of all ranks' values (any number each, >= 0); zero when there are fewer. Scalar."""


class Axes(NamedTuple):
    """The axes of a mesh."""

    rows: DataAxis
    latents: FeatureAxis
    pairs: WorldAxis


@dataclass(frozen=True)
class LocalDataAxis:
    """Data axis of a single process, which has the whole batch."""

    size: int = 1

    def all_reduce(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values

    def exclusive_sum(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class LocalFeatureAxis:
    """Feature axis of a single process, which owns all latents."""

    size: int = 1

    def slice_of(self, width: int) -> slice:
        return slice(0, width)

    def topk(self, scores_BF: Tensor, k: int) -> Chosen:
        latents_BK = largest(scores_BF, k).indices
        return evenly_chosen(latents_BK)

    def argmax(self, scores_BF: Tensor) -> tuple[Tensor, Tensor]:
        best = scores_BF.max(dim=1)
        return best.values, best.indices

    def owned(self, latents: Tensor, num_owned: int) -> Tensor:
        return latents

    def global_rank(self, scores_BK: Tensor) -> Tensor:
        return scores_BK.argsort(dim=1, descending=True, stable=True).argsort(dim=1)

    def all_reduce(self, partial: Tensor) -> Tensor:
        return partial

    def copy_to_axis(self, whole: Tensor) -> Tensor:
        return whole

    def gather(self, values: Tensor) -> Tensor:
        return values

    def count(self, number: int) -> int:
        return number

    def exclusive_sum(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class LocalWorldAxis:
    """Both axes of a single process."""

    def gather(self, values: Tensor) -> Tensor:
        return values[None]

    def count(self, number: int) -> int:
        return number

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        if len(values) < k:
            return values.new_zeros(())
        return torch.topk(values, k, sorted=False).values.amin()


def evenly_chosen(latents_BK: Tensor) -> Chosen:
    """Return chosen latents from an index matrix: the same number in each row."""
    num_rows, k = latents_BK.shape
    offsets = torch.arange(num_rows + 1, device=latents_BK.device) * k
    return Chosen(latents_BK.flatten(), offsets)


class Largest(NamedTuple):
    """The largest entries of every row and their columns (B, K)."""

    values: Tensor
    indices: Tensor


TIED_ENTRIES = 2**20
"""Entries of rows with ties that are processed at once."""


def largest(scores_BF: Tensor, k: int) -> Largest:
    """Return the k largest entries of every row, in column order; the first of equal ones.

    `torch.topk` does not specify which of equal entries it takes, and the selection must not depend on the mesh. Only
    rows whose k-th and next largest entries are equal take a second pass.
    """
    num_columns = scores_BF.shape[1]
    values, indices = torch.topk(scores_BF, min(k + 1, num_columns), dim=1)
    if num_columns > k:
        tied_U = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
        values, indices = values[:, :k], indices[:, :k]
        if len(tied_U):
            few_rows = tied_U.split(max(1, TIED_ENTRIES // num_columns))  # without another matrix of that size
            first = [_first_of_the_largest(scores_BF[some], values[some, k - 1], k) for some in few_rows]
            indices = indices.index_copy(0, tied_U, torch.cat(first))
    indices = indices.sort(dim=1).values
    return Largest(scores_BF.gather(1, indices), indices)


def _first_of_the_largest(scores_UF: Tensor, kth_U: Tensor, k: int) -> Tensor:
    """Return the columns of the k largest of every row, given the k-th; the first of those equal to it."""
    above_UF = ~(scores_UF <= kth_U[:, None])  # NaN is largest
    tied_UF = scores_UF == kth_U[:, None]
    room_U = k - above_UF.sum(1)
    kept_UF = above_UF | (tied_UF & (tied_UF.cumsum(1) <= room_U[:, None]))
    return kept_UF.nonzero()[:, 1].view(-1, k)


LOCAL_DATA = LocalDataAxis()
LOCAL_FEATURE = LocalFeatureAxis()
LOCAL_WORLD = LocalWorldAxis()
ONE_PROCESS = Axes(LOCAL_DATA, LOCAL_FEATURE, LOCAL_WORLD)
