"""p-annealing: the penalty goes from L1 to Lp with p below 1, which shrinks large activations less.

Shapes: B rows, F latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import BatchSums
from lexray.training.dictionaries.penalised import Penalised, PenalisedConfig
from lexray.training.dictionaries.relu import ReLU, ReLUConfig


@dataclass(frozen=True, kw_only=True)
class PSchedule(PenalisedConfig):
    """How p falls."""

    p_end: float = 0.2
    """p at the end; it starts at 1."""
    p_from: float = 0.1
    """Share of the steps after which p begins to fall."""
    p_until: float = 0.6
    """Share of the steps at which it arrives: early enough for the controller to bring L0 back to its target."""
    p_jumps: int = 10
    """In how many equal jumps."""
    p_smoothing: float = 1e-4
    """Added to activations under the power: f^p has infinite slope at zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_end <= 1:
            raise UserError(f"p_end: {self.p_end:g} must be above 0 and at most 1")
        if not 0 <= self.p_from < self.p_until <= 1:
            raise UserError(f"p_from {self.p_from:g}, p_until {self.p_until:g}: needed are 0 <= p_from < p_until <= 1")
        if self.p_jumps < 1 or not self.p_smoothing > 0:
            raise UserError(f"p_jumps {self.p_jumps} must be at least 1 and p_smoothing {self.p_smoothing:g} above 0")

    def p_at(self, progress: float) -> float:
        """p when this share of the training is done."""
        done = (progress - self.p_from) / (self.p_until - self.p_from)
        jumps = max(0, min(self.p_jumps, math.floor(done * self.p_jumps + 1e-9)))
        return 1 + (self.p_end - 1) * jumps / self.p_jumps


class PAnnealing(Penalised):
    """Mixin: an Lp^p penalty whose p follows `PSchedule`, and a coefficient that jumps with it.

    When p changes, the coefficient is multiplied by (mean penalty at the old p) / (mean penalty at the new p) of the
    batch before the jump, so that the penalty keeps its size. The controller moves it on from there.
    """

    config: PSchedule

    def penalty(self, f: Tensor, norms: Tensor | None) -> Tensor:
        return self._lp(f if norms is None else f * norms, self.config.p_at(self.progress))

    def _lp(self, f: Tensor, p: float) -> Tensor:
        if p == 1:
            return f
        epsilon = self.config.p_smoothing
        return torch.where(f > 0, (f + epsilon).pow(p) - epsilon**p, 0.0)

    @torch.no_grad()
    def further_sums(self, f: Tensor, norms: Tensor | None, total_rows: int) -> dict[str, Tensor]:
        if not self._jumps_next:
            return {}
        after = self._lp(f if norms is None else f * norms, self._next_p)
        return {"sparsity_next_p": self.latents.all_reduce(after.sum()) / total_rows}

    @property
    def _next_p(self) -> float:
        return self.config.p_at((self.step + 1) / self.num_steps)

    @property
    def _jumps_next(self) -> bool:
        """Whether p is another one from the next step on."""
        return self._next_p != self.config.p_at(self.progress)

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        if self._jumps_next and batch.sums["sparsity_next_p"] > 0:
            self.controller.log_coefficient.add_(math.log(batch.sums["sparsity"] / batch.sums["sparsity_next_p"]))


@dataclass(frozen=True, kw_only=True)
class PAnnealConfig(PSchedule, ReLUConfig):
    """Options of p-annealing."""

    architecture = "p_anneal"


class PAnneal(PAnnealing, ReLU):
    """ReLU sparse autoencoder with unit-norm atoms and an Lp^p penalty whose p is annealed.

        f and x_hat as in ReLU
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of f_i^p
        p = 1 at first, then falls to p_end in equal jumps

    At a jump lambda is rescaled so that the penalty keeps its size; otherwise the controller moves it. f^p is taken as
    (f + epsilon)^p - epsilon^p, since its slope at zero is infinite.
    """

    Config = PAnnealConfig
    paper = "Karvonen et al., Measuring progress in dictionary learning with board games (2024), arXiv:2408.00113"
    config: PAnnealConfig
