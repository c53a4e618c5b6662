"""How good a dictionary is on rows it never saw, from globally summed numerators and denominators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from training.axes import ALL_ROWS, Rows
from training.dictionaries.base import Dictionary, RawRows

METRICS_VERSION = 1
"""Of the definitions below; saved beside every logged value."""


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    batches: Iterable[RawRows],
    rows: Rows = ALL_ROWS,
    *,
    k: int | None = None,
    sites: Sequence[str] = (),
) -> dict[str, float]:
    """Held-out metrics of raw activations, given in any number of batches on any number of ranks.

    - `fvu`: sum ||y - y_hat||^2 / sum ||y - mean||^2, the mean being that of these very rows. Predicting it gives 1.
      Of several sites, the mean of their values, which are `fvu/SITE` then.
    - `explained_variance`: mean over rows of 1 - ||y - y_hat||^2 / ||y - dataset mean||^2; sites over their scale.
    - `l0`: mean number of non-zero latents per row.
    - `dead_fraction`: share of latents that were active in none of the last `dead_after_rows` training rows.
    - `rows`: how many rows were seen.

    `k` encodes with another number of active latents than was trained. `sites` are the names of what is reconstructed.
    """
    mean_O = dictionary.output.mean_D.double()
    widths = [site.width for site in dictionary.sites.outputs]
    # Every site counts alike, whatever the length of its vectors. Of one site the factor cancels out.
    scales = [1.0] if len(widths) == 1 else [float(s.mean()) for s in dictionary.output.scale_D.split(widths)]
    num_sites = len(widths)
    # On the ranks' own device: NCCL adds up nothing on the host.
    sums = torch.zeros(3 + 2 * num_sites + len(mean_O), dtype=torch.float64, device=mean_O.device)
    for x_BD, y_BO in batches:
        code = dictionary.encode(x_BD) if k is None else dictionary.encode(x_BD, k=k)  # type: ignore[call-arg]
        centred_BO = y_BO.double() - mean_O
        error_BO = dictionary.decode(code, x_BD).double() - y_BO.double()
        errors = torch.stack([p.square().sum(1) for p in error_BO.split(widths, 1)])
        squares = torch.stack([p.square().sum(1) for p in centred_BO.split(widths, 1)])
        weights = sums.new_tensor([1 / scale**2 for scale in scales])
        explained_B = 1 - weights @ errors / (weights @ squares).clamp_min(1e-12)
        sums[:3] += torch.stack([sums.new_tensor(len(x_BD)), explained_B.sum(), code.active_per_row.sum().double()])
        sums[3 : 3 + num_sites] += errors.sum(1)
        sums[3 + num_sites : 3 + 2 * num_sites] += squares.sum(1)
        sums[3 + 2 * num_sites :] += centred_BO.sum(0)
    sums = rows.sum(sums)
    num_rows, explained, active = sums[:3].tolist()
    error, squares, shift = sums[3:].split([num_sites, num_sites, len(mean_O)])
    lost = torch.stack([part.square().sum() for part in shift.split(widths)]) / max(1.0, num_rows)
    fvu = (error / (squares - lost).clamp_min(1e-12)).tolist()
    named = {f"fvu/{site}": value for site, value in zip(sites, fvu, strict=True)} if num_sites > 1 and sites else {}
    return {
        "fvu": sum(fvu) / num_sites,
        **named,
        "explained_variance": explained / max(1.0, num_rows),
        "l0": active / max(1.0, num_rows),
        "dead_fraction": float(dictionary.dead_F.double().mean()),
        "rows": num_rows,
    }
