"""Base of the pursuits: encoders that pick atoms of the decoder one after another.

Shapes: B rows, D width, F latents, T rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Count, NonNegative
from lexray.training.codes.base import Code, CodeConfig, Host, powers_of_two_to
from lexray.training.codes.controller import L0Controller
from lexray.training.objectives.forward import Batch, BatchSums, Forward
from lexray.training.objectives.reconstruction import squared_error
from lexray.training.ops.preactivations import SparseEntries
from lexray.training.ops.pursuit import StopRule
from lexray.training.ops.sparse_code import SparseCode

STARTING_RESIDUAL = 0.5
"""Residual threshold at the first step where it is moved."""


@dataclass(frozen=True, kw_only=True)
class PursuitConfig(CodeConfig):
    """Options of every pursuit; the target L0 is the number of rounds unless `rounds` is set."""

    rounds: Count | None = None
    """Maximum number of atoms that a row picks; None is the target L0, twice that with `residual_threshold: auto`."""
    residual_threshold: NonNegative | Literal["auto"] = 0.0
    """A row stops when its residual is shorter than this, in units of the normalised input (mean squared norm 1).
    `auto`: a controller moves it until the mean L0 is the target, so that each row has the atoms that it needs."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if self.rounds is None and not self.is_adaptive and target_l0 != int(target_l0):
            raise UserError(f"target_l0: {target_l0:g} is not a whole number of rounds; give `rounds`")

    @property
    def is_adaptive(self) -> bool:
        """Whether the residual threshold is moved to the target L0."""
        return self.residual_threshold == "auto"

    def most_rounds(self, target_l0: float) -> int:
        """Return the maximum number of atoms that a row picks."""
        return self.rounds or math.ceil(2 * target_l0 if self.is_adaptive else target_l0)


class PursuitCode(Code):
    """A code that pursues rows with the decoder's atoms, with a rule by which rows stop."""

    takes_k = True
    encoder_tensors = ()  # the decoder encodes

    def __init__(self, config: PursuitConfig, host: Host) -> None:
        super().__init__(config, host)
        if config.is_adaptive:
            host.add_module("controller", L0Controller(self.target_l0, STARTING_RESIDUAL))

    @property
    def rule(self) -> StopRule:
        """Rule by which a row stops."""
        is_adaptive = self.config.is_adaptive
        threshold = float(self.host.controller.coefficient) if is_adaptive else self.config.residual_threshold
        return StopRule(self.config.most_rounds(self.target_l0), threshold)

    def rule_with(self, k: int | None, residual_threshold: float | None) -> StopRule:
        """Return the rule with another number of rounds or threshold, where they are given."""
        rule = self.rule
        norm = rule.residual_norm if residual_threshold is None else residual_threshold
        return rule._replace(rounds=k or rule.rounds, residual_norm=norm)

    def forward_of(self, batch: Batch, code: SparseCode, residual_BD: Tensor) -> Forward:
        """Return the forward pass, given the code without gradient and the residual with it."""
        return Forward(
            batch=batch,
            pairs=SparseEntries(code.values, code.chosen, code.width),
            values=code.values,
            reconstruction=squared_error(residual_BD),
            fired_F=code.fired(),
            observed={"residual_threshold": self.host.controller.coefficient} if self.config.is_adaptive else {},
        )

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        if self.config.is_adaptive:
            self.host.controller.after_step(batch.sums["active"] / batch.rows)

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        if self.config.is_adaptive:
            self.host.controller.after_evaluation(metrics["l0"])

    def eval_ks(self) -> list[int]:
        """Return 1, 2, 4... and the trained number of rounds."""
        return powers_of_two_to(self.rule.rounds)
