"""p-annealing: the penalty goes from L1 to Lp with p below 1, which shrinks large activations less.

Shapes: B rows, F latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, Positive, PositiveShare, Share
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.controller import L0Controller
from lexray.training.codes.folding import Folding
from lexray.training.codes.penalised import PenalisedConfig, PenaltySchedule, penalised_cost
from lexray.training.codes.relu import ReLU
from lexray.training.objectives.forward import BatchSums, Weighted
from lexray.training.objectives.sparsity import Lp, Penalty, Sparsity


@dataclass(frozen=True, kw_only=True)
class PAnnealConfig(PenalisedConfig):
    """Options of p-annealing."""

    kind: str = "p_anneal"
    p_end: PositiveShare = 0.2
    """p at the end; it starts at 1."""
    p_from: Share = 0.1
    """Share of the steps after which p begins to fall."""
    p_until: Share = 0.6
    """Share of the steps at which it arrives: early enough for the controller to bring L0 back to its target."""
    p_jumps: Count = 10
    """In how many equal jumps."""
    p_smoothing: Positive = 1e-4
    """Added to activations under the power: f^p has infinite slope at zero."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if self.p_from >= self.p_until:
            raise UserError(f"p_from: {self.p_from:g} must be below p_until {self.p_until:g}")

    def p_at(self, progress: float) -> float:
        """Return p when this share of the training is done."""
        done = (progress - self.p_from) / (self.p_until - self.p_from)
        jumps = max(0, min(self.p_jumps, math.floor(done * self.p_jumps + 1e-9)))
        return 1 + (self.p_end - 1) * jumps / self.p_jumps


class PSchedule(PenaltySchedule):
    """An Lp^p penalty whose p falls, and a coefficient that jumps with it.

    When p changes, the coefficient is multiplied by (mean penalty at the old p) / (mean penalty at the new p) of the
    batch before the jump, so that the penalty keeps its size. The controller moves it on from there.
    """

    @property
    def penalty(self) -> Penalty:
        return Lp(self.config.p_at(self.host.progress), self.config.p_smoothing)

    @property
    def next_penalty(self) -> Lp:
        """The penalty at the next step."""
        return Lp(self.config.p_at((self.host.step + 1) / self.host.num_steps), self.config.p_smoothing)

    def terms(self) -> list[Weighted]:
        """Return the next step's penalty, for its sum alone, where p is another one then."""
        if self.next_penalty == self.penalty:
            return []
        return [Weighted("sparsity_next_p", Sparsity(self.next_penalty), None)]

    def after_step(self, batch: BatchSums, controller: L0Controller) -> None:
        if self.next_penalty != self.penalty and batch.sums["sparsity_next_p"] > 0:
            controller.log_coefficient.add_(math.log(batch.sums["sparsity"] / batch.sums["sparsity_next_p"]))


class PAnneal(ReLU):
    """ReLU sparse autoencoder with unit-norm atoms and an Lp^p penalty whose p is annealed.

        f and x_hat as in ReLU
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of f_i^p
        p = 1 at first, then falls to p_end in equal jumps

    At a jump lambda is rescaled so that the penalty keeps its size; otherwise the controller moves it. f^p is taken as
    (f + epsilon)^p - epsilon^p, since its slope at zero is infinite.
    """

    kind = "p_anneal"
    Config = PAnnealConfig
    Schedule = PSchedule
    paper = "Karvonen et al., Measuring progress in dictionary learning with board games (2024), arXiv:2408.00113"

    terms = ReLU.sparsity_terms

    def fold(self) -> Folding:
        return Folding(activation="relu")

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return penalised_cost(config, shape, matrices=6.25)
