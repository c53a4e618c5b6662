"""What the penalty codes share: a coefficient that a controller moves until the measured L0 is the target.

Shapes: B rows, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.base import Code, Host
from lexray.training.codes.code_cost import PAIR_BYTES, CodeCost, StepShape, dense_step
from lexray.training.codes.controller import L0Controller
from lexray.training.codes.shared_terms import SharedTermsConfig
from lexray.training.objectives.forward import BatchSums
from lexray.training.ops.linear import Decoder
from lexray.training.ops.topk import Score


@dataclass(frozen=True, kw_only=True)
class PenalisedConfig(SharedTermsConfig):
    """Options of every penalty code."""

    initial_coefficient: float = 0.01
    """Weight of the penalty at the first step; the controller moves it from there."""
    coefficient_warmup: float = 0.0
    """Share of the steps over which the penalty's weight rises linearly from zero."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if not self.initial_coefficient > 0:
            raise UserError(f"initial_coefficient: {self.initial_coefficient:g} must be above 0")
        if not 0 <= self.coefficient_warmup < 1:
            raise UserError(f"coefficient_warmup: {self.coefficient_warmup:g} must be at least 0 and below 1")


class Penalised(Code):
    """A code whose sparsity comes from a penalty in the loss."""

    def __init__(self, config: PenalisedConfig, host: Host) -> None:
        super().__init__(config, host)
        host.add_module("controller", L0Controller(self.target_l0, config.initial_coefficient))
        # Half of all latents are active at first: without this their sum would be a multiple of the input.
        with torch.no_grad():
            host.W_enc.mul_(min(1.0, 2 * host.sites.input_width / self.width))

    @property
    def controller(self) -> L0Controller:
        controller: L0Controller = self.host.controller
        return controller

    @property
    def warmed(self) -> float:
        """Share of the penalty's weight that is in force at this step: it rises to 1."""
        warmup = self.config.coefficient_warmup
        return min(1.0, self.host.progress / warmup) if warmup else 1.0

    @property
    def coefficient(self) -> Tensor:
        """Weight of the penalty at this step (scalar)."""
        return self.controller.coefficient * self.warmed

    def score(self, decoder: Decoder) -> Score:
        """Return how dead latents are ranked: by pre-activation, times the atom's norm where it counts."""
        norms_F = None if decoder.norms_F is None else decoder.norms_F.detach()
        if norms_F is None:
            return lambda z, among: z
        return lambda z, among: z * norms_F[among]

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        if self.host.progress >= self.config.coefficient_warmup:
            self.controller.after_step(batch.sums["active"] / batch.rows)

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        self.controller.after_evaluation(metrics["l0"])


def penalised_cost(config: Any, shape: StepShape, *, matrices: float, reconstructions: int = 1) -> CodeCost:
    """Return the cost of a penalty code while most entries matter, as they do at first."""
    pairs = shape.target_l0 + config.shared_pairs(shape)
    return CodeCost(
        multiply_adds=dense_step(shape) + (reconstructions - 1) * 3 * shape.entries * shape.output_width,
        matrices=matrices + (1.0 if config.terms else 0.0),
        chunked=bool(config.terms),
        pair_bytes=PAIR_BYTES * shape.rows * pairs,
        atom_copies=2,
        all_reduce=reconstructions * shape.output_bytes,
    )
