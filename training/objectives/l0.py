"""Penalties of JumpReLU: on the number of active latents itself, and on how far silent ones are from their threshold.

Steps have no gradient but that of straight-through estimators (`ops.straight_through`).

Shapes: B rows, F latents, U some of the latents; pairs as in `objectives.forward`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.training.mesh.axes import Axes
from lexray.training.objectives.forward import Forward
from lexray.training.ops.straight_through import step


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Number of pre-activations above their threshold, pair by pair, with a straight-through gradient."""

    bandwidth: float
    to_input: bool

    def __call__(self, forward: Forward) -> Tensor:
        assert forward.threshold is not None, "only a JumpReLU has thresholds"
        return step(forward.pairs.pre, forward.threshold, self.bandwidth, self.to_input)


@dataclass(frozen=True, kw_only=True)
class L0:
    """Mean over rows of the number of active latents: Rajamanoharan et al., Jumping ahead (2024), equation 9."""

    steps: Steps

    def __call__(self, forward: Forward, axes: Axes) -> Tensor:
        return axes.latents.all_reduce(self.steps(forward).sum()) / forward.batch.total_rows


@dataclass(frozen=True, kw_only=True)
class QuadraticL0:
    """Mean over rows of (L0 of the row / aim - 1)^2: the same paper's appendix F."""

    steps: Steps
    aim: Tensor

    def __call__(self, forward: Forward, axes: Axes) -> Tensor:
        excess_B = axes.latents.all_reduce(forward.pairs.per_row(self.steps(forward))) / self.aim - 1
        return excess_B.square().sum() / forward.batch.total_rows


@dataclass(frozen=True, kw_only=True)
class PreActivation:
    """Mean over rows of the sum over latents of relu(theta - z) ||atom||: it pulls silent latents to their threshold.

    Anthropic, Circuits updates (January 2025).
    """

    threshold_F: Tensor
    dead_only: bool

    def __call__(self, forward: Forward, axes: Axes) -> Tensor:
        batch = forward.batch
        seen_F = batch.dead_F if self.dead_only else torch.ones_like(batch.dead_F)
        seen_U = seen_F.nonzero().squeeze(1)
        short_BU = F.relu(self.threshold_F[seen_U] - batch.encoder.of(seen_U, batch.x_BD))
        norms_F = batch.decoder.norms_F
        weighted_BU = short_BU if norms_F is None else short_BU * norms_F[seen_U]
        return axes.latents.all_reduce(weighted_BU.sum()) / batch.total_rows
