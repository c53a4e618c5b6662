"""Quality of a dictionary on rows that it was not trained on, from globally summed numerators and denominators."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import NO_VARIANCE
from lexray.training.mesh.axes import LOCAL_DATA, DataAxis
from lexray.training.ops.sparse_code import SparseCode

METRICS_VERSION = 2
"""Version of the definitions below; saved with every logged value."""


@torch.no_grad()
def evaluate(
    dictionary: Dictionary,
    batches: Iterable[RawRows],
    rows: DataAxis = LOCAL_DATA,
    *,
    k: int | None = None,
    sites: Sequence[str] = (),
) -> dict[str, float]:
    """Held-out metrics of raw activations, given in any number of batches on any number of ranks.

    - `fvu`: sum ||y - y_hat||^2 / sum ||y - mean||^2, the mean being that of these very rows. Predicting it gives 1.
      Of several sites, the mean of their values, which are `fvu/SITE` then.
    - `explained_variance`: mean over rows of 1 - ||y - y_hat||^2 / ||y - dataset mean||^2; sites over their scale. Rows
      that equal the dataset's mean have no such value and are left out.
    - `l0`: mean number of non-zero latents per row.
    - `dead_fraction`: share of latents that none of these rows activates.
    - `dead_in_training`: share of latents that none of the last `dead_after_rows` training rows activated.
    - `rows`: how many rows were seen.
    - what the dictionary says of its parameters: `hull` of a relaxed archetypal one.

    A value that has no meaning is NaN, never 0: an FVU of rows that do not differ, a mean over no rows.

    `k` encodes with another number of active latents than was trained. `sites` are the names of what is reconstructed.
    """
    sums = Sums(dictionary)
    fired_F = torch.zeros_like(dictionary.rows_since_fired_F)
    for batch in batches:
        other_k = {} if k is None else {"k": k}
        code = dictionary.encode(batch.x_BD, **other_k)
        sums.add(code, dictionary.decode(code, batch.x_BD), batch.y_BO)
        fired_F += code.fired()
    sums.values = rows.all_reduce(sums.values)
    fvu, dead = sums.fvu(), _share(dictionary, rows.all_reduce(fired_F.double()) == 0)
    named = zip((f"fvu/{site}" for site in sites), fvu, strict=True) if len(fvu) > 1 and sites else ()
    return {
        "fvu": sum(fvu) / len(fvu),
        **dict(named),
        "explained_variance": float(sums.explained / sums.off_mean),  # 0 / 0 is NaN
        "l0": float(sums.active / sums.num_rows),
        "dead_fraction": dead if sums.num_rows else math.nan,
        "dead_in_training": _share(dictionary, dictionary.dead_F),
        "rows": float(sums.num_rows),
        **dictionary.own_metrics(),
    }


def _share(dictionary: Dictionary, mask_F: Tensor) -> float:
    """Return the share of the latents of all slices at which the mask is set."""
    return float(dictionary.latents.all_reduce(mask_F.double().sum())) / dictionary.config.width


class Sums:
    """Numerators and denominators of the metrics, in one tensor. S sites, O their widths together."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        self.mean_O = dictionary.output.mean_D.double()
        self.widths = [site.width for site in dictionary.sites.outputs]
        scales_S = [s.mean() for s in dictionary.output.scale_D.double().split(self.widths)]
        self.weights_S = torch.stack(scales_S) ** -2  # every site counts alike, whatever the length of its vectors
        num_sites = len(self.widths)
        # On the ranks' own device: NCCL adds up nothing on the host.
        self.values = torch.zeros(4 + 2 * num_sites + len(self.mean_O), dtype=torch.float64, device=self.mean_O.device)

    @property
    def _parts(self) -> tuple[Tensor, ...]:
        """Views: rows, those off the dataset's mean, explained variance of these, active latents; squared errors and
        distances (S each); distances (O)."""
        num_sites = len(self.widths)
        return self.values.split([1, 1, 1, 1, num_sites, num_sites, len(self.mean_O)])

    @property
    def num_rows(self) -> Tensor:
        return self._parts[0]

    @property
    def off_mean(self) -> Tensor:
        return self._parts[1]

    @property
    def explained(self) -> Tensor:
        return self._parts[2]

    @property
    def active(self) -> Tensor:
        return self._parts[3]

    def add(self, code: SparseCode, y_hat_BO: Tensor, y_BO: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch of raw targets, their reconstruction and code.

        Returns each row's squared error and squared distance from the dataset's mean, by site (S, B).
        """
        y_BO = y_BO.double()
        centred_BO = y_BO - self.mean_O
        errors_SB = self._by_site(y_hat_BO.double() - y_BO)
        squares_SB = self._by_site(centred_BO)
        distance_B, norm_B = self.weights_S @ squares_SB, self.weights_S @ self._by_site(y_BO)
        off_mean_B = distance_B > NO_VARIANCE * norm_B
        explained_B = 1 - self.weights_S @ errors_SB / distance_B
        num_rows, off_mean, explained, active, error_S, square_S, shift_O = self._parts
        num_rows += len(y_BO)
        off_mean += off_mean_B.sum()
        explained += torch.where(off_mean_B, explained_B, 0.0).sum()
        active += self.dictionary.latents.all_reduce(code.active_per_row.sum())
        error_S += errors_SB.sum(1)
        square_S += squares_SB.sum(1)
        shift_O += centred_BO.sum(0)
        return errors_SB, squares_SB

    @property
    def variance_S(self) -> Tensor:
        """Sum of squared distances from the mean of the rows that were added, at each site (S); NaN where the rows do
        not differ by more than rounding, or there are none."""
        num_rows, *_, square_S, shift_O = self._parts
        shift_S = torch.stack([part.square().sum() for part in shift_O.split(self.widths)])
        variance_S = square_S - shift_S / num_rows
        of_mean_O = num_rows * self.mean_O.square() + 2 * self.mean_O * shift_O
        norm_S = square_S + torch.stack([part.sum() for part in of_mean_O.split(self.widths)])
        return torch.where(variance_S > NO_VARIANCE * torch.maximum(norm_S, square_S), variance_S, torch.nan)

    def fvu(self) -> list[float]:
        """Return the FVU of each site (S), about the mean of the added rows; NaN where these have no variance."""
        fvu: list[float] = (self._parts[4] / self.variance_S).tolist()
        return fvu

    def _by_site(self, values_BO: Tensor) -> Tensor:
        return torch.stack([part.square().sum(1) for part in values_BO.split(self.widths, 1)])
