"""Pre-activations of a batch, as a whole matrix or as the few pairs that matter: element-wise code is written once.

Early in training most latents of a ReLU dictionary are active and whole matrices are fastest; once few are, sums over
those pairs alone cost a fraction. Both classes answer the same questions.

Shapes: B rows, D input width, O output width, F latents, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.training.mesh.axes import Chosen
from lexray.training.ops.linear import Encoder
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode

SPARSE_BELOW = 0.06
"""Share of entries that matter below which sums over them alone are faster."""


@dataclass(frozen=True)
class DenseEntries:
    """All pairs: values are (B, F)."""

    pre: Tensor
    """Pre-activations, with gradient."""

    def at(self, vector_F: Tensor) -> Tensor:
        """A quantity of each latent, as it applies to each pair."""
        return vector_F.expand_as(self.pre)

    def decode(self, values: Tensor, atoms_FO: Tensor) -> Tensor:
        """Sum of values times atoms for every row (B, O)."""
        return (values @ atoms_FO).to(values.dtype)  # what slices add up is fp32, also where products are bf16

    def count(self, mask: Tensor) -> Tensor:
        """Rows in which each latent's pair is set (F), int64."""
        return mask.sum(0)

    def per_row(self, values: Tensor) -> Tensor:
        """Sum of the values of each row (B)."""
        return values.sum(1)


@dataclass(frozen=True)
class SparseEntries:
    """Some pairs: values are (N)."""

    pre: Tensor
    chosen: Chosen
    width: int

    def at(self, vector_F: Tensor) -> Tensor:
        return vector_F[self.chosen.latents]

    def decode(self, values: Tensor, atoms_FO: Tensor) -> Tensor:
        return sparse_decode(values, self.chosen, atoms_FO)

    def count(self, mask: Tensor) -> Tensor:
        return torch.bincount(self.chosen.latents[mask], minlength=self.width)

    def per_row(self, values: Tensor) -> Tensor:
        return values.new_zeros(len(self.chosen.offsets) - 1).index_add(0, self.chosen.rows, values)


Entries = DenseEntries | SparseEntries


def entries_above(floor: Tensor | float, x_BD: Tensor, encoder: Encoder) -> tuple[Entries, Tensor]:
    """Return the pre-activations above `floor` (a number or (F)) where these are few, else all of them.

    And all of them without gradient (B, F).
    """
    z_BF = encoder.all(x_BD)
    all_BF = z_BF.detach()
    mask_BF = all_BF > floor
    if int(mask_BF.sum()) > SPARSE_BELOW * z_BF.numel():
        return DenseEntries(z_BF.to(x_BD.dtype)), all_BF
    return entries_at(all_BF, SparseCode.where(mask_BF, all_BF).chosen, x_BD, encoder), all_BF


def entries_at(z_BF: Tensor, chosen: Chosen, x_BD: Tensor, encoder: Encoder) -> SparseEntries:
    """Return the pre-activations of chosen pairs; `z_BF` are all of them, without gradient."""
    return SparseEntries(encoder.at(z_BF, chosen, x_BD), chosen, z_BF.shape[1])
