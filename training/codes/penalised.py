"""What the penalty families share: a coefficient that a controller moves until the measured L0 is the target.

Shapes: B rows, D input width, O output width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.controller import L0Controller
from lexray.training.dictionaries.base import BatchSums
from lexray.training.dictionaries.learned import LearnedConfig, LearnedDictionary
from lexray.training.dictionaries.normalisers import Sites


@dataclass(frozen=True, kw_only=True)
class PenalisedConfig(LearnedConfig):
    """Options of every penalty family."""

    initial_coefficient: float = 0.01
    """Weight of the penalty at the first step; the controller moves it from there."""
    coefficient_warmup: float = 0.0
    """Share of the steps over which the penalty's weight rises linearly from zero."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.initial_coefficient > 0:
            raise UserError(f"initial_coefficient: {self.initial_coefficient:g} must be above 0")
        if not 0 <= self.coefficient_warmup < 1:
            raise UserError(f"coefficient_warmup: {self.coefficient_warmup:g} must be at least 0 and below 1")


class Penalised(LearnedDictionary):
    """A dictionary whose sparsity comes from a penalty in the loss."""

    config: PenalisedConfig

    def __init__(self, config: PenalisedConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.controller = L0Controller(config.target_l0, config.initial_coefficient)
        # Half of all latents are active at first: without this their sum would be a multiple of the input.
        with torch.no_grad():
            self.W_enc.mul_(min(1.0, 2 * sites.input_width / config.width))

    @property
    def warmed(self) -> float:
        """Share of the penalty's weight that is in force at this step: it rises to 1."""
        warmup = self.config.coefficient_warmup
        return min(1.0, self.progress / warmup) if warmup else 1.0

    @property
    def coefficient(self) -> Tensor:
        """Weight of the penalty at this step (scalar)."""
        return self.controller.coefficient * self.warmed

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        if self.progress >= self.config.coefficient_warmup:
            self.controller.after_step(batch.sums["active"] / batch.rows)

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        self.controller.after_evaluation(metrics["l0"])
