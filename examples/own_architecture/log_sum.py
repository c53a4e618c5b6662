"""An architecture of one's own: ReLU with a penalty on the logarithm of activations.

LEXRAY_PLUGINS=examples/own_architecture/log_sum.py lexray plan SWEEP
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Positive
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.penalised import PenalisedConfig, penalised_cost
from lexray.training.codes.relu import ReLU
from lexray.training.dictionaries import register
from lexray.training.dictionaries.sae import SAE
from lexray.training.mesh.axes import Axes
from lexray.training.objectives.forward import Forward, Weighted, reconstruction_error


@dataclass(frozen=True)
class LogSum:
    """Mean over rows of the sum over latents of log(1 + f / epsilon)."""

    epsilon: float

    def __call__(self, forward: Forward, axes: Axes) -> Tensor:
        total = axes.latents.all_reduce((forward.values / self.epsilon).log1p().sum())
        return total / forward.batch.total_rows


@dataclass(frozen=True, kw_only=True)
class LogSumConfig(PenalisedConfig):
    """Options of the log-sum penalty."""

    kind: str = "log_sum"
    epsilon: Positive = 0.1
    """Activations well below this cost as much as under L1."""


class LogSumReLU(ReLU):
    """ReLU sparse autoencoder with a log-sum penalty.

    f and x_hat as in ReLU
    loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of log(1 + f_i / epsilon)
    """

    kind = "log_sum"
    Config = LogSumConfig
    paper = "Candes, Wakin and Boyd, Enhancing sparsity by reweighted l1 minimization (2008), section 2.2"

    def terms(self) -> list[Weighted]:
        penalty = Weighted("sparsity", LogSum(self.config.epsilon), self.coefficient)
        return [Weighted("reconstruction", reconstruction_error), penalty]

    def fold(self) -> Folding:
        raise UserError("log_sum: not yet tried in another library")

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return penalised_cost(config, shape, matrices=6.25)


register("log_sum", SAE, LogSumReLU)
