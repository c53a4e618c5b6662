"""JumpReLU: a threshold for each latent, learned by straight-through estimators.

Shapes: B rows, D input width, F latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.storage.file_settings import NonNegative, Positive
from lexray.training.codes.base import Host
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.penalised import Penalised, PenalisedConfig, penalised_cost
from lexray.training.objectives.forward import Batch, Forward, Weighted, reconstruction_error
from lexray.training.objectives.l0 import L0, PreActivation, QuadraticL0, Steps
from lexray.training.objectives.sparsity import Sparsity, Tanh
from lexray.training.ops.preactivations import entries_above
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.straight_through import jump
from lexray.training.ops.topk import pairs_above

STARTING_THRESHOLD = 0.1
"""Threshold until `prepare` sets it from data."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(PenalisedConfig):
    """Options of JumpReLU."""

    kind: str = "jumprelu"
    l0_loss: Literal["quadratic", "step", "tanh"] = "quadratic"
    """`quadratic`: lambda * (L0 / aim - 1)^2, row by row; `step`: lambda * L0; `tanh`: lambda * sum of tanh(c f)."""
    gradient: Literal["threshold", "threshold_and_input"] = "threshold"
    """Inputs that receive the gradient of jumps: thresholds alone (DeepMind), or pre-activations too (Anthropic)."""
    threshold_rate: Positive = 10.0
    """Learning rate of log thresholds relative to other parameters, so that they keep up with pre-activations."""
    bandwidth: Positive = 0.03
    """Width of the kernel around a threshold, in units of the normalised input, whose mean squared norm is 1."""
    initial_l0: Positive | None = None
    """L0 at the first step, where thresholds make all latents fire equally often; None is twice the target."""
    tanh_scale: Positive = 4.0
    """c of the tanh penalty for inputs of unit variance per dimension; multiplied by sqrt(site width) here."""
    preact_weight: NonNegative = 0.0
    """Weight of the pre-activation loss, which pulls silent latents towards their threshold."""
    preact_over: Literal["dead", "all"] = "dead"
    """Latents to which the pre-activation loss applies."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if self.initial_l0 is not None and self.initial_l0 > width:
            raise UserError(f"initial_l0: {self.initial_l0:g} must be at most the width {width}")


class JumpReLU(Penalised):
    """JumpReLU sparse autoencoder.

        z = W_enc x + b_enc
        f = z where z > theta, else 0;  theta = exp(threshold_rate * scaled_log_threshold), one a latent
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + sparsity + preact_weight * sum of relu(theta - z) ||atom||
        sparsity = lambda_0 * (L0 / aim - 1)^2              (quadratic: the paper's appendix; each row's own L0)
                 | lambda * L0                              (step: the paper's main text)
                 | lambda * sum of tanh(c f ||atom||)       (tanh: Anthropic, January 2025)

    L0 is the number of z above their threshold (dictionary_learning counts f, which gives silent latents no gradient).
    The controller moves lambda, and for `quadratic` the aim. Quadratic is the default because it pushes from both
    sides: otherwise nothing but the reconstruction raises an L0 that fell too low, which takes long. Gradients of
    jumps: `lexray.training.ops.straight_through`.
    """

    kind = "jumprelu"
    Config = JumpReLUConfig
    paper = "Rajamanoharan et al., Jumping ahead: JumpReLU sparse autoencoders (2024), arXiv:2407.14435"
    per_latent: ClassVar[tuple[str, ...]] = ("scaled_log_threshold",)
    needs_sample = True
    centres_input = False

    def __init__(self, config: JumpReLUConfig, host: Host) -> None:
        super().__init__(config, host)
        # Adam's steps have one size, so a parameter that is multiplied by a rate has that times the learning rate.
        start = math.log(STARTING_THRESHOLD) / config.threshold_rate
        host.register_parameter("scaled_log_threshold", nn.Parameter(torch.full((self.num_latents,), start)))

    # Starting values -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prepare(self, inputs: Callable[[], Iterable[Tensor]]) -> None:
        """Set each threshold to the quantile at which all latents fire equally often and L0 is `initial_l0`."""
        wanted = self.config.initial_l0 or min(2 * self.target_l0, self.width)
        rate = min(0.5, wanted / self.width)
        quantiles = [self._quantile(x_BD, rate) for x_BD in inputs()]
        self.set_threshold(torch.stack(quantiles).mean(0).clamp_min(1e-4))

    def _quantile(self, x_BD: Tensor, rate: float) -> Tensor:
        """Return the pre-activation that a share `rate` of the global batch's rows reaches (F)."""
        z_BF, rows = self.host.encoder().all(x_BD), self.host.axes.rows
        kept = max(1, round(rate * int(rows.all_reduce(torch.tensor(len(z_BF), device=z_BF.device)))))
        best = z_BF.new_full((kept, z_BF.shape[1]), -math.inf)
        mine = torch.topk(z_BF, min(kept, len(z_BF)), dim=0).values
        best[: len(mine)] = mine
        return torch.topk(rows.gather(best), kept, dim=0).values[-1]

    # What every code defines -----------------------------------------------------------------------------------

    @property
    def initial_coefficient(self) -> float:
        # What one latent costs: a start that is right for few latents would silence many.
        return float(self.config.initial_coefficient / (1 if self.config.l0_loss == "quadratic" else self.target_l0))

    @property
    def threshold_F(self) -> Tensor:
        threshold_F: Tensor = (self.config.threshold_rate * self.host.scaled_log_threshold).exp()
        return threshold_F

    @torch.no_grad()
    def set_threshold(self, threshold_F: Tensor) -> None:
        """Set the thresholds (F), zero or more."""
        self.host.scaled_log_threshold.copy_(threshold_F.log() / self.config.threshold_rate)

    def restart_values(self, share: float) -> dict[str, float]:
        """Return `share` of the living thresholds' geometric mean: a high threshold may have silenced the latent."""
        rate = self.config.threshold_rate
        mean = self.host.living_mean(self.host.scaled_log_threshold, default=math.log(STARTING_THRESHOLD) / rate)
        return {**super().restart_values(share), "scaled_log_threshold": mean + math.log(share) / rate}

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        z_BF = self.host.encoder().all(x_BD)
        chosen = pairs_above(z_BF, self.threshold_F, lambda z, among: z)
        return SparseCode(z_BF[chosen.rows, chosen.latents], chosen, z_BF.shape[1])

    @property
    def to_input(self) -> bool:
        """Whether jumps send gradient to pre-activations."""
        return bool(self.config.gradient == "threshold_and_input")

    def forward(self, batch: Batch) -> Forward:
        threshold_F, bandwidth = self.threshold_F, self.config.bandwidth
        # A jump's gradient comes from what lies within half a bandwidth of it, active or not.
        pairs, z_BF = entries_above(threshold_F.detach() - bandwidth / 2, batch.x_BD, batch.encoder)
        threshold = pairs.at(threshold_F)
        values = jump(pairs.pre, threshold, bandwidth, self.to_input)
        fired_F = pairs.count(values.detach() != 0)
        observed = {"aim": self.aim} if self.config.l0_loss == "quadratic" else {"coefficient": self.coefficient}
        return self.forward_of(batch, pairs, z_BF, values, fired_F=fired_F, threshold=threshold, observed=observed)

    @property
    def aim(self) -> Tensor:
        """Aim of `quadratic`: an L0 above the target raises the coefficient, which lowers the aim (scalar)."""
        return self.target_l0 * self.config.initial_coefficient / self.controller.coefficient

    def terms(self) -> list[Weighted]:
        found = [Weighted("reconstruction", reconstruction_error), self._sparsity()]
        if self.config.preact_weight:
            term = PreActivation(threshold_F=self.threshold_F, dead_only=self.config.preact_over == "dead")
            found.append(Weighted("preact", term, self.config.preact_weight))
        return found + self.config.shared_terms(self.score, F.relu)

    def _sparsity(self) -> Weighted:
        """Return the sparsity term with its weight."""
        steps = Steps(bandwidth=self.config.bandwidth, to_input=self.to_input)
        match self.config.l0_loss:
            case "tanh":
                scale = self.config.tanh_scale * self.host.sites.input_width**0.5
                return Weighted("sparsity", Sparsity(Tanh(scale)), self.coefficient)
            case "step":
                return Weighted("sparsity", L0(steps=steps), self.coefficient)
            case _:
                weight = self.config.initial_coefficient * self.warmed
                return Weighted("sparsity", QuadraticL0(steps=steps, aim=self.aim), weight)

    def fold(self) -> Folding:
        return Folding(activation="jumprelu", threshold_F=self.threshold_F.detach())

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        matrices = 6.25
        if config.gradient == "threshold_and_input":
            matrices = 8.0
        elif config.l0_loss == "tanh":
            matrices = 5.25
        return penalised_cost(config, shape, matrices=matrices)
