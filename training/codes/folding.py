"""What a code says of itself to formats of other libraries: which activation it is, with which numbers.

Shapes: F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lexray.training.ops.pursuit import StopRule

Activation = Literal["relu", "gated", "jumprelu", "topk", "abs_topk", "group_max", "pursuit"]

COMPARING: tuple[Activation, ...] = ("topk", "abs_topk", "group_max")
"""Activations that compare latents with each other: scaling one of them changes the choice."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """What a gated encoder has besides its pre-activations s: f = relu(s exp(r) + b_mag) where s + b_gate > 0."""

    b_gate_F: Tensor
    b_mag_F: Tensor
    r_mag_F: Tensor


@dataclass(frozen=True, kw_only=True)
class Folding:
    """f = activation(z) of the linear encoder's pre-activations z."""

    activation: Activation
    k: int | None = None
    """Active latents of a row, in the mean for BatchTopK; None where it is not an option but a result."""
    ranks_by_norm: bool = False
    """Whether latents are ranked by code times the norm of their atom, where norms are free."""
    prefix_widths: tuple[int, ...] = ()
    """Matryoshka's prefixes, where they are the same in every step."""
    threshold_F: Tensor | None = None
    """Of `jumprelu`: a latent is active above it."""
    gate: Gate | None = None
    pursuit: StopRule | None = None
    """Of `pursuit`, whose encoder is the decoder."""
