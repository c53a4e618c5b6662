"""Starting values computed from a sample of training rows, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lexray.training.mesh.axes import DataAxis

MEDIAN_ROUNDS = 30
MEDIAN_TOLERANCE = 1e-6


def row_hashes(x_BD: Tensor, seed: int) -> Tensor:
    """A pseudo-random number in 0..1 for each row, from its values and the seed alone (B), float64.

    What is drawn by it does not depend on how rows lie on ranks and in batches.
    """
    generator = torch.Generator().manual_seed(seed)
    mix_D = torch.randn(x_BD.shape[1], generator=generator, dtype=torch.float64).to(x_BD.device)
    return ((x_BD.double() @ mix_D) * 12.9898).sin().mul(43758.5453).remainder(1.0)


def largest_keys(keyed_BK: Tensor, count: int, rows: DataAxis | None = None) -> Tensor:
    """The `count` rows with the largest first columns, largest first: of this rank, or given `rows` of all of them."""
    best = keyed_BK[keyed_BK[:, 0].argsort(descending=True, stable=True)[:count]]
    if rows is None:
        return best
    padded = best.new_full((count, best.shape[1]), -torch.inf)
    padded[: len(best)] = best
    return largest_keys(rows.gather(padded), count)


@torch.no_grad()
def geometric_median(
    batches: Callable[[], Iterable[Tensor]], rows: DataAxis, like: Tensor, typical_length: float = 1.0
) -> Tensor:
    """The point whose summed distance to all rows (any ranks' batches of (b, D)) is least (D).

    Weiszfeld's iteration from the mean: each round averages the rows weighted by 1 / distance to the last estimate.
    `typical_length` is the scale of the rows; it ends once it moves by little of that.
    """
    estimate = weighted_mean(batches, rows, like, lambda x_BD: torch.ones(len(x_BD), dtype=x_BD.dtype))
    for _ in range(MEDIAN_ROUNDS):
        before = estimate

        def weights(x_BD: Tensor, centre: Tensor = before) -> Tensor:
            return 1 / (x_BD - centre).norm(dim=1).clamp_min(1e-12 * typical_length)

        estimate = weighted_mean(batches, rows, like, weights)
        if float((estimate - before).norm()) <= MEDIAN_TOLERANCE * max(typical_length, float(before.norm())):
            break
    return estimate.to(like.dtype)


def weighted_mean(
    batches: Callable[[], Iterable[Tensor]], rows: DataAxis, like: Tensor, weights: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean of the rows under weights that are a function of each row, over all ranks, in float64 (D)."""
    sums = torch.zeros(len(like) + 1, dtype=torch.float64, device=like.device)
    for x_BD in batches():
        x_BD = x_BD.double()
        w_B = weights(x_BD).to(x_BD.device)
        sums += torch.cat([w_B @ x_BD, w_B.sum().reshape(1)])
    sums = rows.all_reduce(sums)
    return sums[:-1] / sums[-1].clamp_min(1e-300)
