"""Penalties on activations: L1, tanh and Lp, element by element, and the term that adds them up.

A penalty takes activations and the norms of their atoms (None: all 1). Shapes: any, the same for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.training.mesh.axes import Axes
from lexray.training.objectives.forward import Forward

Penalty = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Sparsity:
    """Mean over rows of the sum over latents of penalty(f) (of relu(gate) in a gated code)."""

    penalty: Penalty

    def __call__(self, forward: Forward, axes: Axes) -> Tensor:
        penalised = forward.values if forward.gate is None else forward.gate
        total = axes.latents.all_reduce(self.penalty(penalised, forward.norms).sum())
        return total / forward.batch.total_rows


def l1(f: Tensor, norms: Tensor | None) -> Tensor:
    """f * ||atom||: Bricken et al. (2023), and with free norms Conerly et al. (April 2024)."""
    return f if norms is None else f * norms


@dataclass(frozen=True)
class Tanh:
    """tanh(scale * f * ||atom||): Jermyn et al., Tanh penalty in dictionary learning (February 2024)."""

    scale: float

    def __call__(self, f: Tensor, norms: Tensor | None) -> Tensor:
        return (self.scale * l1(f, norms)).tanh()


@dataclass(frozen=True)
class Lp:
    """(f ||atom|| + epsilon)^p - epsilon^p for f above 0: Karvonen et al. (2024). f^p has infinite slope at zero."""

    p: float
    epsilon: float

    def __call__(self, f: Tensor, norms: Tensor | None) -> Tensor:
        f = l1(f, norms)
        if self.p == 1:
            return f
        return torch.where(f > 0, (f + self.epsilon).pow(self.p) - self.epsilon**self.p, 0.0)
