"""JumpReLU: a threshold for each latent, learned by straight-through estimators.

Shapes: B rows, D input width, O output width, F latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import LossOutput, Sample
from lexray.training.dictionaries.learned import Decoder
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.penalised import Penalised, PenalisedConfig
from lexray.training.ops.preactivations import Entries, entries_above
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.straight_through import jump, step
from lexray.training.ops.topk import pairs_above

STARTING_THRESHOLD = 0.1
"""Until data sets it."""


@dataclass(frozen=True, kw_only=True)
class JumpReLUConfig(PenalisedConfig):
    """Options of JumpReLU."""

    architecture = "jumprelu"

    l0_loss: Literal["quadratic", "step", "tanh"] = "quadratic"
    """`quadratic`: lambda * (L0 / aim - 1)^2, row by row; `step`: lambda * L0; `tanh`: lambda * sum of tanh(c f)."""
    gradient: Literal["threshold", "threshold_and_input"] = "threshold"
    """Where jumps send their gradient: to thresholds alone (DeepMind), or to pre-activations too (Anthropic)."""
    threshold_rate: float = 10.0
    """Learning rate of log thresholds, relative to that of all else: they must keep up with pre-activations."""
    bandwidth: float = 0.03
    """Width of the kernel around a threshold, in units of the normalised input, whose mean squared norm is 1."""
    initial_l0: float | None = None
    """L0 at the first step: each threshold starts where its latent fires that often; None is twice the target."""
    tanh_scale: float = 4.0
    """c of the tanh penalty for inputs of unit variance per dimension: multiplied by sqrt(site width) in ours."""
    preact_weight: float = 0.0
    """Weight of the pre-activation loss, which pulls silent latents towards their threshold."""
    preact_over: Literal["dead", "all"] = "dead"
    """Latents that the pre-activation loss sees."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (
            ("bandwidth", self.bandwidth),
            ("tanh_scale", self.tanh_scale),
            ("threshold_rate", self.threshold_rate),
        ):
            if not value > 0:
                raise UserError(f"{name}: {value:g} must be above 0")
        if self.preact_weight < 0:
            raise UserError(f"preact_weight: {self.preact_weight:g} is below 0")
        if self.initial_l0 is not None and not 0 < self.initial_l0 <= self.width:
            raise UserError(f"initial_l0: {self.initial_l0:g} must be above 0 and at most the width {self.width}")


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

    Config = JumpReLUConfig
    paper = "Rajamanoharan et al., Jumping ahead: JumpReLU sparse autoencoders (2024), arXiv:2407.14435"
    per_latent: ClassVar[tuple[str, ...]] = ("scaled_log_threshold",)
    config: JumpReLUConfig

    def __init__(self, config: JumpReLUConfig, sites: Sites, **kwargs: object) -> None:
        super().__init__(config, sites, **kwargs)
        if config.l0_loss != "quadratic":
            # What one latent costs: a start that is right for few latents would silence many.
            self.controller.log_coefficient.sub_(math.log(config.target_l0))
        # Adam's steps have one size, so a parameter that is multiplied by a rate has that times the learning rate.
        start = math.log(STARTING_THRESHOLD) / config.threshold_rate
        self.scaled_log_threshold = nn.Parameter(torch.full((len(self.W_enc),), start))

    def encoder_bias_F(self) -> Tensor:
        return self.b_enc

    # Starting values -------------------------------------------------------------------------------------------

    @property
    def needs_sample(self) -> bool:
        return True

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        """Set each threshold where its latent fires as often as `initial_l0` asks of each."""
        super().prepare(sample)
        wanted = self.config.initial_l0 or min(2 * self.config.target_l0, self.config.width)
        rate = min(0.5, wanted / self.config.width)
        quantiles = [self._quantile(self.input.normalise(batch.x_BD), rate) for batch in sample()]
        self.set_threshold(torch.stack(quantiles).mean(0).clamp_min(1e-4))

    def _quantile(self, x_BD: Tensor, rate: float) -> Tensor:
        """The pre-activation that this share of the rows of a global batch reach (F), given this rank's rows."""
        z_BF = self.preactivations(x_BD)
        kept = max(1, round(rate * int(self.rows.all_reduce(torch.tensor(len(z_BF), device=z_BF.device)))))
        best = z_BF.new_full((kept, z_BF.shape[1]), -math.inf)
        mine = torch.topk(z_BF, min(kept, len(z_BF)), dim=0).values
        best[: len(mine)] = mine
        return torch.topk(self.rows.gather(best), kept, dim=0).values[-1]

    # The contract ----------------------------------------------------------------------------------------------

    @property
    def threshold_F(self) -> Tensor:
        return (self.config.threshold_rate * self.scaled_log_threshold).exp()

    @torch.no_grad()
    def set_threshold(self, threshold_F: Tensor) -> None:
        """Put the thresholds at these values (F), zero or more."""
        self.scaled_log_threshold.copy_(threshold_F.log() / self.config.threshold_rate)

    def restart_values(self, share: float) -> dict[str, float]:
        """A threshold, which may be what silenced the latent, becomes this share of the living ones' geometric mean."""
        rate = self.config.threshold_rate
        mean = self.living_mean(self.scaled_log_threshold, default=math.log(STARTING_THRESHOLD) / rate)
        return {**super().restart_values(share), "scaled_log_threshold": mean + math.log(share) / rate}

    def encode(self, x_BD: Tensor) -> SparseCode:
        x_BD, frame = self.normalised_with_frame(x_BD)
        z_BF = self.preactivations(x_BD)
        chosen = pairs_above(z_BF, self.threshold_F, lambda z, among: z)
        return SparseCode(z_BF[chosen.rows, chosen.latents], chosen, z_BF.shape[1], frame)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        x_BD, y_BO = self.normalised(x_BD, y_BO)
        decoder, bias_F, threshold_F = self.decoder(), self.encoder_bias_F(), self.threshold_F
        # A jump's gradient comes from what lies within half a bandwidth of it, active or not.
        entries = entries_above(threshold_F.detach() - self.config.bandwidth / 2, x_BD, self.W_enc, bias_F)
        threshold, to_input = entries.at(threshold_F), self.config.gradient == "threshold_and_input"
        f = jump(entries.pre, threshold, self.config.bandwidth, to_input)
        error_BO = y_BO - self.latents.all_reduce(entries.decode(f, decoder.atoms_FO)) - self.offset(x_BD)
        reconstruction = error_BO.square().sum() / total_rows
        sparsity, observed = self._sparsity(entries, f, threshold, decoder, to_input, total_rows)
        fired_F = entries.count(f.detach() != 0)
        sums = {**self.batch_stats(y_BO, error_BO, fired_F), "reconstruction": reconstruction.detach()}
        loss = reconstruction + sparsity
        if self.config.preact_weight:
            preact = self._preact(x_BD, bias_F, threshold_F, decoder) / total_rows
            loss, sums["preact"] = loss + self.config.preact_weight * preact, preact.detach()
        return LossOutput(loss, {**sums, "sparsity": sparsity.detach()}, fired_F, observed)

    def _sparsity(
        self, entries: Entries, f: Tensor, threshold: Tensor, decoder: Decoder, to_input: bool, total_rows: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sparsity term (scalar), and what the controller moves."""
        coefficient = self.coefficient
        if self.config.l0_loss == "tanh":
            scale = self.config.tanh_scale * self.sites.input_width**0.5
            weighted = f if decoder.norms_F is None else f * entries.at(decoder.norms_F)
            penalty = self.latents.all_reduce((scale * weighted).tanh().sum())
            return coefficient * penalty / total_rows, {"coefficient": coefficient}
        steps = step(entries.pre, threshold, self.config.bandwidth, to_input)
        if self.config.l0_loss == "step":
            return coefficient * self.latents.all_reduce(steps.sum()) / total_rows, {"coefficient": coefficient}
        # More latents than wanted raise the coefficient: here that lowers the aim.
        start = self.config.initial_coefficient
        aim = self.config.target_l0 * start / self.controller.coefficient
        excess_B = self.latents.all_reduce(entries.per_row(steps)) / aim - 1
        return start * self.warmed * excess_B.square().sum() / total_rows, {"aim": aim}

    def _preact(self, x_BD: Tensor, bias_F: Tensor, threshold_F: Tensor, decoder: Decoder) -> Tensor:
        """Sum over rows and latents of relu(theta - z) ||atom||."""
        seen = self.dead_F if self.config.preact_over == "dead" else torch.ones_like(self.dead_F)
        seen_U = seen.nonzero().squeeze(1)
        z_BU = F.linear(x_BD, self.W_enc[seen_U], bias_F[seen_U])
        short_BU = F.relu(threshold_F[seen_U] - z_BU)
        return self.latents.all_reduce(
            (short_BU if decoder.norms_F is None else short_BU * decoder.norms_F[seen_U]).sum()
        )
