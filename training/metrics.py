"""How good a dictionary is on rows it never saw, from globally summed numerators and denominators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lexray.training.axes import ALL_ROWS, Rows
from lexray.training.code import Code
from lexray.training.dictionaries.base import Dictionary, RawRows

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
    sums = Sums(dictionary)
    for batch in batches:
        other_k = {} if k is None else {"k": k}
        code = dictionary.encode(batch.x_BD, **other_k)
        sums.add(code, dictionary.decode(code, batch.x_BD), batch.y_BO)
    sums.values = rows.sum(sums.values)
    fvu, num_rows = sums.fvu(), float(sums.num_rows)
    named = zip((f"fvu/{site}" for site in sites), fvu, strict=True) if len(fvu) > 1 and sites else ()
    return {
        "fvu": sum(fvu) / len(fvu),
        **dict(named),
        "explained_variance": float(sums.explained) / max(1.0, num_rows),
        "l0": float(sums.active) / max(1.0, num_rows),
        "dead_fraction": float(dictionary.latents.sum(dictionary.dead_F.double().sum())) / dictionary.config.width,
        "rows": num_rows,
    }


class Sums:
    """What the metrics are made of, in one tensor that ranks add up at once. S sites, O their widths together."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.mean_O = dictionary.output.mean_D.double()
        self.widths = [site.width for site in dictionary.sites.outputs]
        scales_S = [s.mean() for s in dictionary.output.scale_D.double().split(self.widths)]
        self.weights_S = torch.stack(scales_S) ** -2  # every site counts alike, whatever the length of its vectors
        num_sites = len(self.widths)
        # On the ranks' own device: NCCL adds up nothing on the host.
        self.values = torch.zeros(3 + 2 * num_sites + len(self.mean_O), dtype=torch.float64, device=self.mean_O.device)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        """Views: rows, explained variance, active latents; squared errors and distances (S each); distances (O)."""
        num_sites = len(self.widths)
        return self.values.split([1, 1, 1, num_sites, num_sites, len(self.mean_O)])

    @property
    def num_rows(self) -> Tensor:
        return self._parts[0]

    @property
    def explained(self) -> Tensor:
        return self._parts[1]

    @property
    def active(self) -> Tensor:
        return self._parts[2]

    def add(self, code: Code, y_hat_BO: Tensor, y_BO: Tensor) -> None:
        """A batch of raw targets, their reconstruction and code."""
        centred_BO = y_BO.double() - self.mean_O
        errors_SB = self._by_site(y_hat_BO.double() - y_BO.double())
        squares_SB = self._by_site(centred_BO)
        explained_B = 1 - self.weights_S @ errors_SB / (self.weights_S @ squares_SB).clamp_min(1e-12)
        num_rows, explained, active, error_S, square_S, shift_O = self._parts
        num_rows += len(y_BO)
        explained += explained_B.sum()
        active += self.dictionary.latents.sum(code.active_per_row.sum())
        error_S += errors_SB.sum(1)
        square_S += squares_SB.sum(1)
        shift_O += centred_BO.sum(0)

    @property
    def variance_S(self) -> Tensor:
        """Sum of squared distances from the mean of the rows that were added, at each site (S)."""
        num_rows, _, _, _, square_S, shift_O = self._parts
        shift_S = torch.stack([part.square().sum() for part in shift_O.split(self.widths)])
        return (square_S - shift_S / num_rows.clamp_min(1)).clamp_min(1e-12)

    def fvu(self) -> list[float]:
        """Of each site (S), about the mean of the rows that were added."""
        fvu: list[float] = (self._parts[3] / self.variance_S).tolist()
        return fvu

    def _by_site(self, values_BO: Tensor) -> Tensor:
        return torch.stack([part.square().sum(1) for part in values_BO.split(self.widths, 1)])
