"""The axes of a mesh of several ranks, made of two collectives.

Shapes: B rows on this rank, F latents on this rank, K chosen or scored entries of a row on this rank, G ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lexray.training.mesh.axes import Chosen, largest
from lexray.training.mesh.communicator import Communicator


@dataclass(frozen=True)
class SplitDataAxis:
    """The batch is split over ranks."""

    ranks: Communicator

    @property
    def size(self) -> int:
        return self.ranks.size

    def all_reduce(self, values: Tensor) -> Tensor:
        return self.ranks.all_sum(values)

    def gather(self, values: Tensor) -> Tensor:
        return self.ranks.all_gather(values).flatten(0, 1)

    def exclusive_sum(self, count: int) -> int:
        return _exclusive_sum(self.ranks, count)


@dataclass(frozen=True)
class SplitFeatureAxis:
    """The latents are cut into slices of one size, one a rank, in the order of the ranks."""

    ranks: Communicator

    @property
    def size(self) -> int:
        return self.ranks.size

    def slice_of(self, width: int) -> slice:
        assert width % self.size == 0, (width, self.size)
        share = width // self.size
        return slice(self.ranks.rank * share, (self.ranks.rank + 1) * share)

    def topk(self, scores_BF: Tensor, k: int) -> Chosen:
        mine = largest(scores_BF, min(k, scores_BF.shape[1]))
        # Slices may have fewer columns than k, and some (of dead latents) none.
        offered_BK = scores_BF.new_full((len(scores_BF), k), -torch.inf)
        offered_BK[:, : mine.values.shape[1]] = mine.values
        kept_BK = (self.global_rank(offered_BK) < k)[:, : mine.values.shape[1]]
        counts_B = kept_BK.sum(1)
        return Chosen(mine.indices[kept_BK], torch.cat([counts_B.new_zeros(1), counts_B.cumsum(0)]))

    def argmax(self, scores_BF: Tensor) -> tuple[Tensor, Tensor]:
        best = scores_BF.max(dim=1)
        everyones_GB = self.ranks.all_gather(best.values)
        value_B, owner_B = everyones_GB.max(dim=0)
        number_B = torch.where(owner_B == self.ranks.rank, best.indices + self._first(scores_BF.shape[1]), 0)
        return value_B, self.ranks.all_sum(number_B)

    def owned(self, latents: Tensor, num_owned: int) -> Tensor:
        local = latents - self._first(num_owned)
        return torch.where((local >= 0) & (local < num_owned) & (latents >= 0), local, -1)

    def global_rank(self, scores_BK: Tensor) -> Tensor:
        everyones_GBK = self.ranks.all_gather(scores_BK)
        # Slices in order, columns in order: of equal scores the first latent stands first.
        together_BX = everyones_GBK.transpose(0, 1).flatten(1)
        places_BX = together_BX.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return places_BX.unflatten(1, (self.size, -1))[:, self.ranks.rank]

    def all_reduce(self, partial: Tensor) -> Tensor:
        total: Tensor = _AllReduce.apply(partial, self.ranks)
        return total

    def copy_to_axis(self, whole: Tensor) -> Tensor:
        same: Tensor = _CopyToAxis.apply(whole, self.ranks)
        return same

    def gather(self, values: Tensor) -> Tensor:
        return self.ranks.all_gather(values).flatten(0, 1)

    def count(self, number: int) -> int:
        return _count(self.ranks, number)

    def exclusive_sum(self, count: int) -> int:
        return _exclusive_sum(self.ranks, count)

    def _first(self, num_owned: int) -> int:
        return self.ranks.rank * num_owned


@dataclass(frozen=True)
class SplitWorldAxis:
    """All ranks of a mesh."""

    ranks: Communicator

    def gather(self, values: Tensor) -> Tensor:
        return self.ranks.all_gather(values)

    def count(self, number: int) -> int:
        return _count(self.ranks, number)

    def kth_largest(self, values: Tensor, k: int) -> Tensor:
        # The k largest overall are among every rank's k largest; short lists are padded with zeros.
        mine = values.new_zeros(k)
        best = torch.topk(values, min(k, len(values)), sorted=False).values
        mine[: len(best)] = best
        return torch.topk(self.ranks.all_gather(mine).flatten(), k, sorted=False).values.amin()


class _AllReduce(Function):
    """All-reduce whose gradient passes as it is: what follows is the same on every rank."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, ranks: Communicator) -> Tensor:
        return ranks.all_sum(partial)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _CopyToAxis(Function):
    """Identity whose gradients, each from one slice, are summed."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, ranks: Communicator) -> Tensor:
        ctx.ranks = ranks
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.all_sum(grads[0]), None


def _count(ranks: Communicator, number: int) -> int:
    return int(ranks.all_sum(torch.tensor(number, device=ranks.device)))


def _exclusive_sum(ranks: Communicator, count: int) -> int:
    counts_G = ranks.all_gather(torch.tensor(count, device=ranks.device)).tolist()
    return sum(counts_G[: ranks.rank])
