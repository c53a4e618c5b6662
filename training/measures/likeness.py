"""How alike rows and their reconstructions are, beside their distance. Shapes: B rows, O width of all output sites."""

from __future__ import annotations

import torch
from torch import Tensor

from lexray.training.dictionaries.base import Dictionary

_TINY = 1e-12


class Likeness:
    """Cosines and lengths, summed over rows in float64. Of several sites, the mean of their values.

    With y a raw row, y' its reconstruction and m the dataset's mean:

        cosine                        mean over rows of <y, y'> / (||y|| ||y'||), what the field reports
        cosine_centred                the same of y - m and y' - m: a large common mean makes no row alike
        relative_norm                 mean over rows of ||y'|| / ||y||, the field's L2 ratio
        relative_norm_centred         mean over rows of ||y' - m|| / ||y - m||: below 1 where a dictionary shrinks
        relative_reconstruction_bias  sum of ||y'||^2 / sum of <y, y'> (Rajamanoharan et al., 2024, appendix): 1 where
                                      no rescaling of y' would bring it nearer to y; None where y' is 0

    A row or reconstruction of length 0 has cosine 0.
    """

    def __init__(self, dictionary: Dictionary) -> None:
        self._mean_O = dictionary.output.mean_D.double()
        self._widths = [site.width for site in dictionary.sites.outputs]
        self._rows = 0
        self._sums_6S = torch.zeros(6, len(self._widths), dtype=torch.float64, device=self._mean_O.device)

    def add(self, y_hat_BO: Tensor, y_BO: Tensor) -> None:
        """A batch of reconstructions and their raw targets."""
        y_BO, y_hat_BO = y_BO.double(), y_hat_BO.double()
        raw = self._per_row(y_BO, y_hat_BO)
        centred = self._per_row(y_BO - self._mean_O, y_hat_BO - self._mean_O)
        self._rows += len(y_BO)
        for number, (cosine_SB, ratio_SB, *_) in enumerate((raw, centred)):
            self._sums_6S[2 * number] += cosine_SB.sum(1)
            self._sums_6S[2 * number + 1] += ratio_SB.sum(1)
        self._sums_6S[4] += raw[2].square().sum(1)
        self._sums_6S[5] += raw[3].sum(1)

    def document(self) -> dict[str, float | None]:
        """Plain values."""
        cosine, ratio, centred, ratio_centred = (self._sums_6S[:4] / max(1, self._rows)).mean(1).tolist()
        squares_S, inner_S = self._sums_6S[4:]
        return {
            "cosine": cosine,
            "cosine_centred": centred,
            "relative_norm": ratio,
            "relative_norm_centred": ratio_centred,
            "relative_reconstruction_bias": float((squares_S / inner_S).mean()) if inner_S.all() else None,
        }

    def _per_row(self, y_BO: Tensor, y_hat_BO: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cosine, ratio of lengths, length of the reconstruction and inner product at each site (S, B each)."""
        norm_SB, norm_hat_SB = self._norms(y_BO), self._norms(y_hat_BO)
        inner_SB = torch.stack([part.sum(1) for part in (y_BO * y_hat_BO).split(self._widths, 1)])
        cosine_SB = inner_SB / (norm_SB * norm_hat_SB).clamp_min(_TINY)
        return cosine_SB, norm_hat_SB / norm_SB.clamp_min(_TINY), norm_hat_SB, inner_SB

    def _norms(self, values_BO: Tensor) -> Tensor:
        return torch.stack([part.norm(dim=1) for part in values_BO.split(self._widths, 1)])
