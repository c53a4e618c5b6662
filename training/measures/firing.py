"""Firing frequency of latents. Shapes: F latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lexray.training.ops.sparse_code import SparseCode

DENSE_ABOVE = 0.1
"""A latent that is active in more than this share of the rows is dense."""

LOWEST, BINS_PER_DECADE = -7, 4
"""Range (log10) and resolution of the histogram: frequencies from 1e-7 to 1."""


class FiringCounts:
    """Rows in which each latent has a non-zero value."""

    def __init__(self, width: int, device: torch.device | str = "cpu") -> None:
        self.rows = 0
        self.counts_F = torch.zeros(width, dtype=torch.int64, device=device)

    def add(self, code: SparseCode) -> None:
        self.rows += len(code.chosen.offsets) - 1
        self.counts_F += code.fired()

    @property
    def frequency_F(self) -> Tensor:
        """Share of the rows in which each latent is active (F), float64."""
        return self.counts_F.double() / max(1, self.rows)

    @property
    def l0(self) -> float:
        """Mean number of active latents per row."""
        return int(self.counts_F.sum()) / max(1, self.rows)

    def document(self) -> dict[str, Any]:
        """Return plain values: shares of latents in 0..1, and the histogram of log10 of non-zero frequencies.

        A frequency on the edge of two bins counts in the upper one; a frequency of 1 in the last.
        """
        frequency_F = self.frequency_F
        fired = frequency_F[frequency_F > 0]
        num_bins = -LOWEST * BINS_PER_DECADE
        places = ((fired.log10() - LOWEST) * BINS_PER_DECADE + 1e-9).floor().long().clamp(0, num_bins - 1)
        return {
            "l0": self.l0,
            "dense_above": DENSE_ABOVE,
            "dense_fraction": float((frequency_F > DENSE_ABOVE).double().mean()),
            "dead_fraction": float((frequency_F == 0).double().mean()),
            "log10_edges": [LOWEST + number / BINS_PER_DECADE for number in range(num_bins + 1)],
            "histogram": torch.bincount(places, minlength=num_bins).tolist(),
        }
