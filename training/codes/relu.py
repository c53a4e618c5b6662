"""ReLU codes: a penalty on the activations, driven to a target L0. L1, norm-weighted L1 and tanh.

Shapes: B rows, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from lexray.storage.file_settings import Positive
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.penalised import (
    Penalised,
    PenalisedConfig,
    PenaltySchedule,
    penalised_cost,
)
from lexray.training.objectives.forward import Batch, Forward, Weighted, reconstruction_error
from lexray.training.objectives.sparsity import Penalty, Sparsity, Tanh
from lexray.training.ops.preactivations import entries_above
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import pairs_above


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(PenalisedConfig):
    """Options of ReLU."""

    kind: str = "relu"


class ReLU(Penalised):
    """ReLU sparse autoencoder with unit-norm atoms and an L1 penalty.

        z = W_enc (x - b_dec) + b_enc
        f = relu(z)
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum of f

    x is the normalised input; lambda is moved by `L0Controller` until the mean number of active latents is the target.
    """

    kind = "relu"
    Config: ClassVar[type[PenalisedConfig]] = ReLUConfig
    paper = "Bricken et al., Towards monosemanticity (2023), transformer-circuits.pub"

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        z_BF = self.host.encoder().all(x_BD)
        chosen = pairs_above(z_BF, z_BF.new_zeros(()), lambda z, among: z)
        return SparseCode(z_BF[chosen.rows, chosen.latents], chosen, z_BF.shape[1])

    def forward(self, batch: Batch) -> Forward:
        pairs, z_BF = entries_above(0.0, batch.x_BD, batch.encoder)
        return self.forward_of(batch, pairs, z_BF, F.relu(pairs.pre), fired_F=pairs.count(pairs.pre.detach() > 0))

    def sparsity_terms(self) -> list[Weighted]:
        """Return the reconstruction, the penalty and AuxK."""
        return [
            Weighted("reconstruction", reconstruction_error),
            Weighted("sparsity", Sparsity(self.schedule.penalty), self.coefficient),
            *self.config.shared_terms(self.score, F.relu),
            *self.schedule.terms(),
        ]

    terms = sparsity_terms

    def fold(self) -> Folding:
        return Folding(activation="relu")

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return penalised_cost(config, shape, matrices=4.25)


@dataclass(frozen=True, kw_only=True)
class ReLUTanhConfig(ReLUConfig):
    """Options of ReLU with the tanh penalty."""

    kind: str = "relu_tanh"
    initial_coefficient: Positive | None = None  # type: ignore[assignment]
    """Weight of the penalty at the first step; the controller adjusts it from there. None is 0.01 / sqrt(target L0): a
    row's penalty is about its L0 here and about sqrt(L0) for L1, and one of another size silences most latents."""
    tanh_scale: Positive = 4.0
    """c in tanh(c f ||atom||), for inputs of unit variance per dimension: multiplied by sqrt(site width) in ours."""


class TanhPenalty(PenaltySchedule):
    """tanh(c sqrt(D) f ||atom||)."""

    @property
    def penalty(self) -> Penalty:
        return Tanh(self.config.tanh_scale * self.host.sites.input_width**0.5)


class ReLUTanh(ReLU):
    """ReLU sparse autoencoder with a penalty that saturates: large activations cost no more than medium ones.

        loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of tanh(c f_i ||W_dec_i||)

    The scale c belongs to inputs whose norm is about sqrt(D) (Anthropic's convention); for the normalised input, whose
    mean squared norm is 1, the same penalty has c sqrt(D).
    """

    kind = "relu_tanh"
    Config = ReLUTanhConfig
    Schedule = TanhPenalty
    paper = "Jermyn et al., Tanh penalty in dictionary learning (February 2024), transformer-circuits.pub"

    @property
    def initial_coefficient(self) -> float:
        return float(self.config.initial_coefficient or PenalisedConfig.initial_coefficient / self.target_l0**0.5)

    terms = ReLU.sparsity_terms

    def fold(self) -> Folding:
        return Folding(activation="relu")

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return penalised_cost(config, shape, matrices=4.25)
