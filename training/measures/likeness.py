"""Cosine and length ratios of rows and their reconstructions. Shapes: B rows, O width of all output sites."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lexray.training.dictionaries.base import Dictionary


class _Alike(NamedTuple):
    """Similarities of a batch at each site (S, B each)."""

    cosine_SB: Tensor
    ratio_SB: Tensor
    """Length of the reconstruction over that of the row."""
    norm_SB: Tensor
    norm_hat_SB: Tensor
    inner_SB: Tensor


def _mean(values_S: Tensor) -> float | None:
    """Return the mean over sites; None where one of them has no value."""
    mean = float(values_S.mean())
    return mean if math.isfinite(mean) else None


class Likeness:
    """Cosines and lengths, summed over rows in float64; with several sites, the mean of their values.

    With y a raw row, y' its reconstruction and m the dataset's mean:

        cosine                        mean over rows of <y, y'> / (||y|| ||y'||), as usually reported
        cosine_centred                the same of y - m and y' - m: a large common mean does not inflate it
        relative_norm                 mean over rows of ||y'|| / ||y||, usually called L2 ratio
        relative_norm_centred         mean over rows of ||y' - m|| / ||y - m||: below 1 where there is shrinkage
        relative_reconstruction_bias  sum of ||y'||^2 / sum of <y, y'> (Rajamanoharan et al., 2024, appendix): 1 where
                                      no rescaling of y' reduces the error; None where y' is 0

    A row or reconstruction of length 0 has cosine 0. Rows of length 0 have no ratio of lengths and are excluded; where
    all are, the mean is None.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self._mean_O = dictionary.output.mean_D.double()
        self._widths = [site.width for site in dictionary.sites.outputs]
        self._rows = 0
        self._sums_6S = torch.zeros(6, len(self._widths), dtype=torch.float64, device=self._mean_O.device)
        self._long_2S = torch.zeros(2, len(self._widths), dtype=torch.float64, device=self._mean_O.device)
        """Number of rows of length above 0, raw and centred, by site."""

    def add(self, y_hat_BO: Tensor, y_BO: Tensor) -> None:
        """Add a batch of reconstructions and their raw targets."""
        y_BO, y_hat_BO = y_BO.double(), y_hat_BO.double()
        raw = self._per_row(y_BO, y_hat_BO)
        centred = self._per_row(y_BO - self._mean_O, y_hat_BO - self._mean_O)
        self._rows += len(y_BO)
        for number, alike in enumerate((raw, centred)):
            self._sums_6S[2 * number] += alike.cosine_SB.sum(1)
            self._sums_6S[2 * number + 1] += alike.ratio_SB.sum(1)
            self._long_2S[number] += (alike.norm_SB > 0).sum(1)
        self._sums_6S[4] += raw.norm_hat_SB.square().sum(1)
        self._sums_6S[5] += raw.inner_SB.sum(1)

    def document(self) -> dict[str, float | None]:
        """Return plain values."""
        cosine_S, ratio_S, centred_S, ratio_centred_S, squares_S, inner_S = self._sums_6S
        return {
            "cosine": _mean(cosine_S / self._rows),
            "cosine_centred": _mean(centred_S / self._rows),
            "relative_norm": _mean(ratio_S / self._long_2S[0]),
            "relative_norm_centred": _mean(ratio_centred_S / self._long_2S[1]),
            "relative_reconstruction_bias": _mean(squares_S / inner_S),
        }

    def _per_row(self, y_BO: Tensor, y_hat_BO: Tensor) -> _Alike:
        norm_SB, norm_hat_SB = self._norms(y_BO), self._norms(y_hat_BO)
        inner_SB = torch.stack([part.sum(1) for part in (y_BO * y_hat_BO).split(self._widths, 1)])
        both_SB = norm_SB * norm_hat_SB
        cosine_SB = torch.where(both_SB > 0, inner_SB / both_SB, 0.0)
        ratio_SB = torch.where(norm_SB > 0, norm_hat_SB / norm_SB, 0.0)
        return _Alike(cosine_SB, ratio_SB, norm_SB, norm_hat_SB, inner_SB)

    def _norms(self, values_BO: Tensor) -> Tensor:
        return torch.stack([part.norm(dim=1) for part in values_BO.split(self._widths, 1)])
