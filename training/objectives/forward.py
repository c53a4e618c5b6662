"""Arguments of the loss terms: a batch and its code.

A term has one signature, `term(forward, axes) -> Tensor`: the part of this rank's rows, a scalar with gradient; the
parts sum to the term over the data axis. A code lists its terms with their weights, and `weighted_sum` adds them.

Shapes: B rows on this rank, D input width, O output width, F latents; pairs are some of the B x F (row, latent) pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lexray.training.mesh.axes import Axes
from lexray.training.ops.linear import Decoder, Encoder
from lexray.training.ops.preactivations import Entries


class Batch(NamedTuple):
    """This rank's rows of a global batch, normalised, with the encoder and decoder."""

    x_BD: Tensor
    y_BO: Tensor
    """Targets."""
    offset_BO: Tensor
    """Offset added to the sum of atoms: b_dec (O), and a skip connection (B, O)."""
    total_rows: int
    """Rows of the global batch."""
    encoder: Encoder
    decoder: Decoder
    dead_F: Tensor
    """Mask of dead latents (F), bool."""

    @property
    def target_BO(self) -> Tensor:
        """Target of the sum of atoms (B, O)."""
        return self.y_BO - self.offset_BO


class Reconstruction(NamedTuple):
    """Reconstruction loss and error of the active latents."""

    loss: Tensor
    """Sum over this rank's rows, with gradient: the squared error of the code, or of parts of it."""
    error_BO: Tensor
    """Target minus the reconstruction by all active latents."""


@dataclass(frozen=True, kw_only=True)
class Forward:
    """A code of a batch, with gradient."""

    batch: Batch
    pairs: Entries
    """Pre-activations of the pairs that train, with gradient."""
    values: Tensor
    """Activations of the same pairs, with gradient."""
    reconstruction: Reconstruction
    fired_F: Tensor
    """Rows of this rank in which each latent is active (F)."""
    z_BF: Tensor | None = None
    """All pre-activations, without gradient, where the code keeps them for its terms."""
    gate: Tensor | None = None
    """relu of a gated code's gate, for the same pairs."""
    threshold: Tensor | None = None
    """Threshold of JumpReLU, for the same pairs."""
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    """Quantities that are already equal on every rank (a threshold, a coefficient)."""

    @property
    def norms(self) -> Tensor | None:
        """Norm of each pair's atom where norms are free; None where all are 1."""
        norms_F = self.batch.decoder.norms_F
        return None if norms_F is None else self.pairs.at(norms_F)


class LossOutput(NamedTuple):
    """A training loss with the statistics that the loop needs."""

    loss: Tensor
    """This rank's part of the global loss, with gradient; the parts sum to the loss over the data axis."""
    sums: dict[str, Tensor]
    """The same parts of sums over the batch, without gradient: `error`, `variance`, `active`, terms of the loss."""
    fired_F: Tensor
    """Rows of this rank in which each of its latents is active."""
    observed: Mapping[str, Tensor]
    """Quantities that are already equal on every rank (a threshold, a coefficient)."""


class BatchSums(NamedTuple):
    """The same for the global batch, equal on every rank; a dictionary updates its state from them."""

    rows: int
    sums: dict[str, float]
    fired_F: Tensor
    observed: Mapping[str, Tensor]


class Term(Protocol):
    """One part of a loss; its docstring is its equation."""

    def __call__(self, forward: Forward, axes: Axes) -> Tensor: ...


class Weighted(NamedTuple):
    """A term with its weight and its name in logs."""

    name: str
    term: Term
    weight: float | Tensor | None = 1.0
    """Weight in the loss; None: the term is summed for the code only, and is not part of the loss."""


def weighted_sum(terms: Iterable[Weighted], forward: Forward, axes: Axes) -> tuple[Tensor, dict[str, Tensor]]:
    """Return this rank's part of the loss, and of every term by name (without gradient)."""
    loss, sums = None, {}
    for name, term, weight in terms:
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight is not None):
            part = term(forward, axes)
        sums[name] = part.detach()
        if weight is not None:
            weighted = part if isinstance(weight, float) and weight == 1 else weight * part
            loss = weighted if loss is None else loss + weighted
    assert loss is not None, "a loss has at least one term"
    return loss, sums


def reconstruction_error(forward: Forward, axes: Axes) -> Tensor:
    """Mean over rows of ||y - y_hat||^2, or of the code's own reconstruction loss."""
    return forward.reconstruction.loss / forward.batch.total_rows
