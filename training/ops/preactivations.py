"""Pre-activations of a batch, as a whole matrix or as the few pairs that matter: element-wise code is written once.

Early in training most latents of a ReLU dictionary are active and whole matrices are fastest; once few are, sums over
those pairs alone cost a fraction. Both classes answer the same questions.

Shapes: B rows, D input width, O output width, F latents, N pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.training.mesh.axes import Chosen
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import chosen_preactivations, sparse_decode

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


def entries_above(floor: Tensor | float, x_BD: Tensor, W_enc_FD: Tensor, bias_F: Tensor) -> Entries:
    """Pre-activations x W^T + b: those above `floor` (a number or (F)) where these are few, else all of them."""
    z_BF = F.linear(x_BD, W_enc_FD, bias_F)
    mask_BF = z_BF.detach() > floor
    if int(mask_BF.sum()) > SPARSE_BELOW * z_BF.numel():
        return DenseEntries(z_BF.to(W_enc_FD.dtype))
    z_BF = z_BF.detach()
    chosen = SparseCode.where(mask_BF, z_BF).chosen
    return SparseEntries(chosen_preactivations(z_BF, chosen, x_BD, W_enc_FD, bias_F), chosen, len(W_enc_FD))
