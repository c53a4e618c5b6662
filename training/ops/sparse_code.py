"""The sparse latent vector of a batch of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lexray.training.mesh.axes import Chosen


class RowFrame(NamedTuple):
    """Mean and scale that `layer_norm` removed from each row, restored at the output."""

    shift_B1: Tensor
    scale_B1: Tensor


class SparseCode(NamedTuple):
    """Active latents of every row and their values; never dense.

    Shapes: B rows, F latents of the dictionary, N active (row, latent) pairs.
    """

    values: Tensor
    """Activation of each pair (N)."""
    chosen: Chosen
    """Latents of the pairs, and the start of each row's run."""
    width: int
    """Number of latents of the dictionary."""
    frame: RowFrame | None = None
    """Per-row mean and scale for decoding under `layer_norm`; None otherwise."""

    @property
    def indices(self) -> Tensor:
        """Latent of each pair (N), int64."""
        return self.chosen.latents

    @property
    def rows(self) -> Tensor:
        """Row of each pair (N), int64."""
        return self.chosen.rows

    @property
    def active_per_row(self) -> Tensor:
        """Number of latents with a non-zero value in each row (B), int64."""
        num_rows = len(self.chosen.offsets) - 1
        return torch.bincount(self.rows[self.values != 0], minlength=num_rows)

    def fired(self) -> Tensor:
        """Number of rows in which each latent is active (F), int64."""
        return torch.bincount(self.indices[self.values != 0], minlength=self.width)

    def dense(self) -> Tensor:
        """Return the code as a dense matrix (B, F), for inspecting a few rows."""
        out = self.values.new_zeros(len(self.chosen.offsets) - 1, self.width)
        out[self.rows, self.indices] = self.values
        return out

    @staticmethod
    def where(mask_BF: Tensor, values_BF: Tensor) -> SparseCode:
        """Return the code of the matrix entries at which the mask is set."""
        rows, latents = mask_BF.nonzero(as_tuple=True)
        counts = mask_BF.sum(1)
        offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        return SparseCode(values_BF[rows, latents], Chosen(latents, offsets), mask_BF.shape[1])
