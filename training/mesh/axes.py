"""The axes of a mesh, as a dictionary sees them.

A dictionary owns a slice of the latents and sees a slice of the batch's rows. What crosses slices it asks of three
objects: `latents` (the feature axis), `rows` (the data axis) and `pairs` (both: every row with every latent). In one
process they are the named trivial objects of `ONE_PROCESS`, so the same lines run everywhere;
`lexray.training.mesh.split_axes` has those of a mesh.

All ranks of a feature group see the same rows and compute the same loss. So a sum over latents passes its gradient on
as it is, and a parameter that all of them have (a bias of the output) passes through `share` where it enters
computations on a slice, which adds up its gradient. No row operation carries gradient: gradients of different rows are
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
    """Where each row's run begins, and the end of the last (B + 1), int64."""

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
        """The ranks' tensors (same shape on each) one after another along the first dimension."""

    def exclusive_sum(self, count: int) -> int:
        """How many of something the ranks before this one have, given how many this one has."""


class FeatureAxis(Protocol):
    """The feature axis."""

    @property
    def size(self) -> int:
        """Number of slices."""

    def slice_of(self, width: int) -> slice:
        """Which latents of a dictionary of `width` this rank owns."""

    def topk(self, scores_BF: Tensor, k: int) -> Chosen:
        """The k largest of every row over all latents, of equal ones the first; those that this rank owns."""

    def argmax(self, scores_BF: Tensor) -> tuple[Tensor, Tensor]:
        """The largest score of every row over all latents, and its number among all of them (the first): (B)."""

    def owned(self, latents: Tensor, num_owned: int) -> Tensor:
        """Numbers among all latents as indices among the `num_owned` of this rank, -1 where another one owns them."""

    def global_rank(self, scores_BK: Tensor) -> Tensor:
        """Where each score stands among those of its row on all ranks, the largest at 0; -inf is no score: (B, K)."""

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Sum of partial values over the slices, with gradient; any shape."""

    def copy_to_axis(self, whole: Tensor) -> Tensor:
        """A tensor that all ranks have, on its way into computations on a slice: its gradient is summed."""

    def gather(self, values: Tensor) -> Tensor:
        """The slices' tensors (same shape on each) one after another along the first dimension."""

    def count(self, number: int) -> int:
        """Sum of a number over the slices."""

    def exclusive_sum(self, count: int) -> int:
        """How many of something the slices before this one have, given how many this one has."""


class WorldAxis(Protocol):
    """Both axes at once."""

    def gather(self, values: Tensor) -> Tensor:
        """Every rank's values (same shape on each), by rank: (ranks, ...)."""

    def count(self, number: int) -> int:
        """Sum of a number over all ranks."""

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        """The k-th largest of all ranks' values (any number each, all >= 0); zero when there are fewer. Scalar."""


class Axes(NamedTuple):
    """A mesh as a dictionary sees it."""

    rows: DataAxis
    latents: FeatureAxis
    pairs: WorldAxis


@dataclass(frozen=True)
class LocalDataAxis:
    """One process sees the whole batch."""

    size: int = 1

    def all_reduce(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> Tensor:
        return values

    def exclusive_sum(self, count: int) -> int:
        return 0


@dataclass(frozen=True)
class LocalFeatureAxis:
    """One process owns every latent."""

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
    """One process has all of them."""

    def gather(self, values: Tensor) -> Tensor:
        return values[None]

    def count(self, number: int) -> int:
        return number

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        if len(values) < k:
            return values.new_zeros(())
        return torch.topk(values, k, sorted=False).values.amin()


def evenly_chosen(latents_BK: Tensor) -> Chosen:
    """As many chosen latents in each row."""
    num_rows, k = latents_BK.shape
    offsets = torch.arange(num_rows + 1, device=latents_BK.device) * k
    return Chosen(latents_BK.flatten(), offsets)


class Largest(NamedTuple):
    """The largest entries of every row and where they are (B, K)."""

    values: Tensor
    indices: Tensor


TIED_ENTRIES = 2**20
"""Entries of rows with ties that are looked at at once."""


def largest(scores_BF: Tensor, k: int) -> Largest:
    """The k largest entries of every row, in the order of their columns; of equal ones the first.

    `torch.topk` does not say which of equal entries it takes, and what a mesh chooses must not depend on how it is cut.
    Rows whose k-th and next largest entries are equal get a second look, the others need none.
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
    """Where the k largest of every row are, given the k-th; of those equal to it the first."""
    above_UF = ~(scores_UF <= kth_U[:, None])  # NaN is largest
    tied_UF = scores_UF == kth_U[:, None]
    room_U = k - above_UF.sum(1)
    kept_UF = above_UF | (tied_UF & (tied_UF.cumsum(1) <= room_U[:, None]))
    return kept_UF.nonzero()[:, 1].view(-1, k)


LOCAL_DATA = LocalDataAxis()
LOCAL_FEATURE = LocalFeatureAxis()
LOCAL_WORLD = LocalWorldAxis()
ONE_PROCESS = Axes(LOCAL_DATA, LOCAL_FEATURE, LOCAL_WORLD)
