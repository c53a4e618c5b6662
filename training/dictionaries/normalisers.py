"""Input normalisers: transform raw activations before encoding, and invert the transform at the output.

All of them are x_n = (x - shift) / scale, per dimension, and for `whiten` a product with a matrix after it. Shift and
scale come from the statistics of whole sites, which are exact and known before the first row is read:

    none        shift 0, scale 1
    centre      shift the mean
    unit_norm   scale sqrt(mean squared norm), so that the mean squared norm is 1 (dictionary_learning's convention)
    standard    shift the mean, scale sqrt(mean squared distance from it): predicting the mean costs exactly 1
    layer_norm  each row's own mean and standard deviation times sqrt(D) (Gao et al., 2024), undone at the output
    whiten      (x - mean) times the inverse root of the covariance, divided by sqrt(D) so that the total variance is 1

Several sites are concatenated in one row, each with its own shift and scale. Everything is a buffer, so that a saved
dictionary takes raw activations. Shapes: B rows, D width of all the sites together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lexray.training.mesh.axes import DataAxis
from lexray.training.ops.sparse_code import RowFrame

NormaliserName = Literal["none", "centre", "unit_norm", "standard", "layer_norm", "whiten"]

NO_VARIANCE = 1e-12
"""A site has no variance when its variance is at most this share of its mean squared norm: sums of equal float32 rows
leave less than that, and rows that differ by less cannot be told from rounding."""
LAYER_NORM_FLOOR = 1e-5
"""A row's own deviation is at least this share of its norm, so that rounding of a constant row is not amplified."""
WHITEN_FLOOR = 1e-4
"""Eigenvalues of the covariance below this share of their mean are raised to it, so that noise is not amplified."""


@dataclass(frozen=True, kw_only=True)
class SiteStatistics:
    """Statistics of a site, exact over the dataset."""

    mean: tuple[float, ...]
    """Mean vector (D)."""
    mean_squared_norm: float
    """Mean over rows of the squared norm, before centring."""

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def variance(self) -> float:
        """Mean squared distance from the mean, over all dimensions together."""
        return max(self.mean_squared_norm - sum(m * m for m in self.mean), 0.0)

    @property
    def has_variance(self) -> bool:
        """Whether the rows differ by more than rounding."""
        return self.variance > NO_VARIANCE * self.mean_squared_norm

    @property
    def scale(self) -> float:
        """Root of the variance: dividing by it makes the total variance 1. Positive even without variance."""
        return max(self.variance, NO_VARIANCE * self.mean_squared_norm) ** 0.5 or 1.0


@dataclass(frozen=True, kw_only=True)
class Sites:
    """The sites that a dictionary reads and those that it reconstructs."""

    inputs: tuple[SiteStatistics, ...]
    outputs: tuple[SiteStatistics, ...]
    """The same object as `inputs` for everything but transcoders."""

    @staticmethod
    def same(*sites: SiteStatistics) -> Sites:
        """Return the sites of a dictionary that reconstructs its input."""
        return Sites(inputs=sites, outputs=sites)

    @property
    def reconstructs_its_input(self) -> bool:
        return self.outputs is self.inputs

    @property
    def input_width(self) -> int:
        return sum(site.width for site in self.inputs)

    @property
    def output_width(self) -> int:
        return sum(site.width for site in self.outputs)

    def widths(self) -> dict[str, list[int]]:
        """Return plain values for a saved dictionary's config."""
        return {"inputs": [s.width for s in self.inputs], "outputs": [s.width for s in self.outputs]}

    @staticmethod
    def of_widths(widths: dict[str, list[int]], *, reconstructs_its_input: bool) -> Sites:
        """Return sites without statistics, for a dictionary whose buffers are loaded next."""

        def blank(width: int) -> SiteStatistics:
            return SiteStatistics(mean=(0.0,) * width, mean_squared_norm=1.0)

        inputs = tuple(map(blank, widths["inputs"]))
        return Sites(inputs=inputs, outputs=inputs if reconstructs_its_input else tuple(map(blank, widths["outputs"])))


class Normaliser(nn.Module):
    """One of the normalisers above, for one or several concatenated sites."""

    mean_D: Tensor
    """The dataset's mean, whether it is subtracted or not."""
    shift_D: Tensor
    scale_D: Tensor

    def __init__(self, kind: NormaliserName, sites: Sequence[SiteStatistics]) -> None:
        super().__init__()
        self.kind = kind
        mean_D = torch.tensor([m for site in sites for m in site.mean], dtype=torch.float32)
        scale_D = torch.cat([torch.full((site.width,), self._scale(site), dtype=torch.float32) for site in sites])
        centred = kind in ("centre", "standard", "whiten")
        self.register_buffer("mean_D", mean_D)
        self.register_buffer("shift_D", mean_D.clone() if centred else torch.zeros_like(mean_D))
        self.register_buffer("scale_D", scale_D)
        keeps_scale = kind in ("none", "centre")
        self.typical_length = sum(site.scale**2 for site in sites) ** 0.5 if keeps_scale else 1.0
        """Scale of normalised rows, for tolerances while training; unknown to a loaded dictionary."""
        if kind == "whiten":
            self.register_buffer("whiten_DD", torch.eye(len(mean_D)))
            self.register_buffer("unwhiten_DD", torch.eye(len(mean_D)))

    def _scale(self, site: SiteStatistics) -> float:
        if self.kind == "unit_norm":
            return site.mean_squared_norm**0.5 or 1.0
        return site.scale if self.kind == "standard" else 1.0

    @property
    def needs_sample(self) -> bool:
        """Whether `fit` must see rows before `normalise` can be used."""
        return self.kind == "whiten"

    def frame(self, x_BD: Tensor) -> RowFrame | None:
        """Return the per-row mean and scale that denormalisation needs: None except for `layer_norm`."""
        if self.kind != "layer_norm":
            return None
        x_BD = x_BD.to(self.mean_D.dtype)
        variance_B1, mean_B1 = torch.var_mean(x_BD, dim=1, keepdim=True, correction=0)
        floor_B1 = LAYER_NORM_FLOOR * x_BD.norm(dim=1, keepdim=True)
        scale_B1 = torch.maximum((variance_B1 * x_BD.shape[1]).sqrt(), floor_B1)
        return RowFrame(mean_B1, torch.where(scale_B1 > 0, scale_B1, 1.0))

    def normalise(self, x_BD: Tensor, frame: RowFrame | None = None) -> Tensor:
        """Normalise raw rows (B, D). `frame` saves `layer_norm` recomputing it."""
        x_BD = x_BD.to(self.mean_D.dtype)
        if self.kind == "layer_norm":
            frame = frame or self.frame(x_BD)
            assert frame is not None
            return (x_BD - frame.shift_B1) / frame.scale_B1
        x_BD = (x_BD - self.shift_D) / self.scale_D
        return x_BD @ self.get_buffer("whiten_DD") if self.kind == "whiten" else x_BD

    def denormalise(self, x_BD: Tensor, frame: RowFrame | None = None) -> Tensor:
        """Invert `normalise`. `frame` is that of the raw rows."""
        if self.kind == "layer_norm":
            assert frame is not None, "layer_norm is undone by each row's own mean and scale"
            return x_BD * frame.scale_B1 + frame.shift_B1
        if self.kind == "whiten":
            x_BD = x_BD @ self.get_buffer("unwhiten_DD")
        return x_BD * self.scale_D + self.shift_D

    @property
    def normalised_mean_D(self) -> Tensor:
        """Mean of the normalised dataset (D); zero where the mean is subtracted."""
        if self.kind == "layer_norm":
            return torch.zeros_like(self.mean_D)
        return (self.mean_D - self.shift_D) / self.scale_D

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor], rows: DataAxis) -> None:
        """Compute the whitening matrices from raw rows: the covariance about the dataset's mean, over all ranks."""
        width = len(self.mean_D)
        total = torch.zeros(width, width, dtype=torch.float64, device=self.mean_D.device)
        count = torch.zeros((), dtype=torch.float64, device=self.mean_D.device)
        for x_BD in batches:
            centred_BD = x_BD.double() - self.mean_D.double()
            total += centred_BD.T @ centred_BD
            count += len(x_BD)
        covariance = rows.all_reduce(total) / rows.all_reduce(count)
        values_D, vectors_DD = torch.linalg.eigh(covariance)
        roots_D = (values_D.clamp_min(WHITEN_FLOOR * float(values_D.mean())) * width).sqrt()
        self.get_buffer("whiten_DD").copy_(vectors_DD / roots_D @ vectors_DD.T)
        self.get_buffer("unwhiten_DD").copy_(vectors_DD * roots_D @ vectors_DD.T)
