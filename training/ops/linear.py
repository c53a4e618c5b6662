"""The linear maps of a dictionary, as codes and terms use them.

Shapes: B rows on this rank, D input width, O output width, F latents, U some of them, N chosen (row, latent) pairs.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch.nn.functional as F
from torch import Tensor

from lexray.training.mesh.axes import Chosen
from lexray.training.ops.sparse_products import chosen_preactivations


class Encoder(Protocol):
    """From normalised rows to pre-activations: all of them, or those at chosen pairs with a sparse gradient."""

    def all(self, x_BD: Tensor) -> Tensor:
        """Return every pre-activation (B, F)."""

    def at(self, z_BF: Tensor, chosen: Chosen, x_BD: Tensor) -> Tensor:
        """Return the pre-activations at chosen pairs (N), with gradient; `z_BF` are all of them, without."""

    def of(self, latents_U: Tensor, x_BD: Tensor) -> Tensor:
        """Return the pre-activations of some latents (B, U), with gradient."""


class LinearEncoder(NamedTuple):
    """z = W x + bias."""

    W_FD: Tensor
    bias_F: Tensor

    def all(self, x_BD: Tensor) -> Tensor:
        return F.linear(x_BD, self.W_FD, self.bias_F)

    def at(self, z_BF: Tensor, chosen: Chosen, x_BD: Tensor) -> Tensor:
        return chosen_preactivations(z_BF, chosen, x_BD, self.W_FD, self.bias_F)

    def of(self, latents_U: Tensor, x_BD: Tensor) -> Tensor:
        return F.linear(x_BD, self.W_FD[latents_U], self.bias_F[latents_U])


class NoEncoder:
    """The encoder of codes that have none of their own."""

    def all(self, x_BD: Tensor) -> Tensor:
        raise NotImplementedError("this code has no linear encoder")

    def at(self, z_BF: Tensor, chosen: Chosen, x_BD: Tensor) -> Tensor:
        raise NotImplementedError("this code has no linear encoder")

    def of(self, latents_U: Tensor, x_BD: Tensor) -> Tensor:
        raise NotImplementedError("this code has no linear encoder")


NO_ENCODER = NoEncoder()


class Decoder(NamedTuple):
    """The atoms as a reconstruction uses them."""

    atoms_FO: Tensor
    norms_F: Tensor | None
    """Factor of each atom in penalties and selection; None where all are 1."""
