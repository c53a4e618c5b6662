"""Starting values computed from a sample of training rows, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from training.axes import Rows

MEDIAN_ROUNDS = 30
MEDIAN_TOLERANCE = 1e-6


@torch.no_grad()
def geometric_median(batches: Callable[[], Iterable[Tensor]], rows: Rows, like: Tensor) -> Tensor:
    """The point whose summed distance to all rows (any ranks' batches of (b, D)) is least (D).

    Weiszfeld's iteration from the mean: each round averages the rows weighted by 1 / distance to the last estimate.
    """
    estimate = weighted_mean(batches, rows, like, lambda x_BD: torch.ones(len(x_BD), dtype=x_BD.dtype))
    for _ in range(MEDIAN_ROUNDS):
        before = estimate

        def weights(x_BD: Tensor, centre: Tensor = before) -> Tensor:
            return 1 / (x_BD - centre).norm(dim=1).clamp_min(1e-12)

        estimate = weighted_mean(batches, rows, like, weights)
        if float((estimate - before).norm()) <= MEDIAN_TOLERANCE * max(1.0, float(before.norm())):
            break
    return estimate.to(like.dtype)


def weighted_mean(
    batches: Callable[[], Iterable[Tensor]], rows: Rows, like: Tensor, weights: Callable[[Tensor], Tensor]
) -> Tensor:
    """Mean of the rows under weights that are a function of each row, over all ranks, in float64 (D)."""
    sums = torch.zeros(len(like) + 1, dtype=torch.float64, device=like.device)
    for x_BD in batches():
        x_BD = x_BD.double()
        w_B = weights(x_BD).to(x_BD.device)
        sums += torch.cat([w_B @ x_BD, w_B.sum().reshape(1)])
    sums = rows.sum(sums)
    return sums[:-1] / sums[-1].clamp_min(1e-300)
