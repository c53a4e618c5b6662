"""Base of the penalty codes: a controller adjusts the coefficient until the measured L0 meets the target.

Shapes: B rows, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from lexray.storage.file_settings import Positive
from lexray.training.codes.base import Code, Host
from lexray.training.codes.code_cost import PAIR_BYTES, CodeCost, StepShape, dense_step
from lexray.training.codes.controller import L0Controller
from lexray.training.codes.shared_terms import SharedTermsConfig
from lexray.training.objectives.forward import Batch, BatchSums, Forward, Weighted
from lexray.training.objectives.reconstruction import squared_error
from lexray.training.objectives.sparsity import Penalty, l1
from lexray.training.ops.linear import Decoder
from lexray.training.ops.preactivations import Entries
from lexray.training.ops.topk import Score


@dataclass(frozen=True, kw_only=True)
class PenalisedConfig(SharedTermsConfig):
    """Options of every penalty code."""

    initial_coefficient: Positive = 0.01
    """Weight of the penalty at the first step; the controller adjusts it from there."""
    coefficient_warmup: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps over which the penalty's weight rises linearly from zero."""


class PenaltySchedule:
    """The penalty of a code at each step: L1 throughout, unless a subclass says otherwise."""

    def __init__(self, config: Any, host: Host) -> None:
        self.config, self.host = config, host

    @property
    def penalty(self) -> Penalty:
        """The penalty at this step."""
        return l1

    def terms(self) -> list[Weighted]:
        """Return terms that the schedule itself needs the sums of."""
        return []

    def after_step(self, batch: BatchSums, controller: L0Controller) -> None:
        """Adapt the coefficient where the penalty changes."""


class Penalised(Code):
    """A code whose sparsity comes from a penalty in the loss."""

    Schedule: ClassVar[type[PenaltySchedule]] = PenaltySchedule

    def __init__(self, config: PenalisedConfig, host: Host) -> None:
        super().__init__(config, host)
        self.schedule = self.Schedule(config, host)
        host.add_module("controller", L0Controller(self.target_l0, self.initial_coefficient))
        # Half of all latents are active at first: without this their sum would be a multiple of the input.
        with torch.no_grad():
            host.W_enc.mul_(min(1.0, 2 * host.sites.input_width / self.width))

    @property
    def initial_coefficient(self) -> float:
        """Weight of the penalty at the first step."""
        return float(self.config.initial_coefficient)

    @property
    def controller(self) -> L0Controller:
        controller: L0Controller = self.host.controller
        return controller

    @property
    def warmed(self) -> float:
        """Warmup factor of the penalty's weight at this step; rises to 1."""
        warmup = self.config.coefficient_warmup
        return min(1.0, self.host.progress / warmup) if warmup else 1.0

    @property
    def coefficient(self) -> Tensor:
        """Weight of the penalty at this step (scalar)."""
        return self.controller.coefficient * self.warmed

    def score(self, decoder: Decoder) -> Score:
        """Return the score that ranks dead latents: pre-activation, times the atom's norm where norms are free."""
        norms_F = None if decoder.norms_F is None else decoder.norms_F.detach()
        if norms_F is None:
            return lambda z, among: z
        return lambda z, among: z * norms_F[among]

    def forward_of(self, batch: Batch, pairs: Entries, z_BF: Tensor, values: Tensor, **more: Any) -> Forward:
        """Return the forward pass, given the activations of the pairs that train and all pre-activations."""
        decoded_BO = self.host.axes.latents.all_reduce(pairs.decode(values, batch.decoder.atoms_FO))
        return Forward(
            batch=batch,
            pairs=pairs,
            values=values,
            reconstruction=squared_error(batch.y_BO - decoded_BO - batch.offset_BO),
            z_BF=z_BF if self.config.terms else None,
            **{"observed": {"coefficient": self.coefficient}, **more},
        )

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        if self.host.progress >= self.config.coefficient_warmup:
            self.controller.after_step(batch.sums["active"] / batch.rows)
        self.schedule.after_step(batch, self.controller)

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        self.controller.after_evaluation(metrics["l0"])


def penalised_cost(config: Any, shape: StepShape, *, matrices: float, reconstructions: int = 1) -> CodeCost:
    """Return the cost of a penalty code while most entries are active, as at the start."""
    pairs = shape.target_l0 + config.shared_pairs(shape)
    return CodeCost(
        multiply_adds=dense_step(shape) + (reconstructions - 1) * 3 * shape.entries * shape.output_width,
        matrices=matrices,
        chunked=bool(config.terms),
        pair_bytes=PAIR_BYTES * shape.rows * pairs,
        atom_copies=2,
        all_reduce=reconstructions * shape.output_bytes,
    )
