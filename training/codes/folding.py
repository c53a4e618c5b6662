"""Description of a code for export to formats of other libraries: its activation function and parameters.

Shapes: F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lexray.training.ops.pursuit import StopRule

Activation = Literal["relu", "gated", "jumprelu", "topk", "abs_topk", "group_max", "pursuit"]

COMPARING: tuple[Activation, ...] = ("topk", "abs_topk", "group_max")
"""Activations that compare latents with each other: scaling one latent changes the selection."""


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Parameters of a gated encoder with pre-activations s: f = relu(s exp(r) + b_mag) where s + b_gate > 0, else 0."""

    b_gate_F: Tensor
    b_mag_F: Tensor
    r_mag_F: Tensor


@dataclass(frozen=True, kw_only=True)
class Folding:
    """f = activation(z) of the linear encoder's pre-activations z."""

    activation: Activation
    k: int | None = None
    """Active latents per row (the mean for BatchTopK); None where the code does not set it."""
    ranks_by_norm: bool = False
    """Whether latents are ranked by code times atom norm, where norms are free."""
    prefix_widths: tuple[int, ...] = ()
    """Matryoshka's prefix widths, where they are fixed over steps."""
    threshold_F: Tensor | None = None
    """Thresholds of `jumprelu`, above which a latent is active."""
    gate: Gate | None = None
    pursuit: StopRule | None = None
    """Stopping rule of `pursuit`, which encodes with the decoder's atoms."""
