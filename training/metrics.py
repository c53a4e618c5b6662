"""How good a dictionary is on rows it never saw, from globally summed numerators and denominators."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from training.axes import ALL_ROWS, Rows
from training.dictionaries.base import Dictionary

METRICS_VERSION = 1
"""Of the definitions below; saved beside every logged value."""


@torch.no_grad()
def evaluate(dictionary: Dictionary, batches: Iterable[Tensor], rows: Rows = ALL_ROWS) -> dict[str, float]:
    """Held-out metrics of raw activations, given in any number of (b, D) batches on any number of ranks.

    - `fvu`: sum ||x - x_hat||^2 / sum ||x - mean||^2, the mean being that of these very rows. Predicting it gives 1.
    - `explained_variance`: mean over rows of 1 - ||x - x_hat||^2 / ||x - dataset mean||^2.
    - `l0`: mean number of non-zero latents per row.
    - `dead_fraction`: share of latents that were active in none of the last `dead_after_rows` training rows.
    - `rows`: how many rows were seen.
    """
    device = dictionary.mean_D.device  # the ranks' own: NCCL adds up nothing on the host
    sums = torch.zeros(5 + len(dictionary.mean_D), dtype=torch.float64, device=device)
    for x_BD in batches:
        code = dictionary.encode(x_BD)
        centred_BD = x_BD.double() - dictionary.mean_D.double()
        error_B = (dictionary.decode(code).double() - x_BD.double()).square().sum(1)
        squares_B = centred_BD.square().sum(1)
        explained = (1 - error_B / squares_B.clamp_min(1e-12)).sum()
        scalars = [error_B.sum(), squares_B.sum(), explained, code.active_per_row.sum().double()]
        sums[0] += len(x_BD)
        sums[1:5] += torch.stack(scalars)
        sums[5:] += centred_BD.sum(0)
    sums = rows.sum(sums)
    num_rows, error, squares, explained_rows, active = sums[:5].tolist()
    variance = squares - float(sums[5:].square().sum()) / max(1.0, num_rows)
    return {
        "fvu": error / max(variance, 1e-12),
        "explained_variance": explained_rows / max(1.0, num_rows),
        "l0": active / max(1.0, num_rows),
        "dead_fraction": float(dictionary.dead_F.double().mean()),
        "rows": num_rows,
    }
