"""Gated dictionaries: one half of the encoder decides which latents are active, the other how much.

Shapes: B rows, D input width, O output width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexray.training.dictionaries.base import LossOutput
from lexray.training.dictionaries.p_anneal import PAnnealing, PSchedule
from lexray.training.dictionaries.relu import ReLU, ReLUConfig
from lexray.training.ops.preactivations import entries_above
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import pairs_above


@dataclass(frozen=True, kw_only=True)
class GatedConfig(ReLUConfig):
    """Options of Gated."""

    architecture = "gated"


class Gated(ReLU):
    """Gated sparse autoencoder.

        s = W_enc (x - b_dec)
        pi = s + b_gate,  magnitude = relu(s * exp(r_mag) + b_mag)
        f = magnitude where pi > 0, else 0
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum of relu(pi) + ||x - relu(pi) atoms' - b_dec'||^2

    Primes mark what gets no gradient from the auxiliary term, as in the paper (SAELens differentiates it). The gate's
    step has no gradient: pi learns from the last two terms alone.
    """

    Config = GatedConfig
    paper = "Rajamanoharan et al., Improving dictionary learning with gated SAEs (2024), arXiv:2404.16014"
    per_latent: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")
    config: GatedConfig

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        del self.b_enc
        num_latents = len(self.W_enc)
        self.b_gate = nn.Parameter(torch.zeros(num_latents))
        self.b_mag = nn.Parameter(torch.zeros(num_latents))
        self.r_mag = nn.Parameter(torch.zeros(num_latents))

    def encoder_bias_F(self) -> Tensor:
        """- W_enc b_dec: what subtracting b_dec from every row comes to."""
        return -(self.W_enc @ self.latents.copy_to_axis(self.b_dec))

    def restart_values(self, share: float) -> dict[str, float]:
        return {**super().restart_values(share), "b_gate": 0.0, "b_mag": 0.0, "r_mag": 0.0}

    def encode(self, x_BD: Tensor) -> SparseCode:
        x_BD, frame = self.normalised_with_frame(x_BD)
        s_BF = self.preactivations(x_BD)
        scale_F = self.r_mag.exp()

        def score(s: Tensor, among: Tensor | slice) -> Tensor:
            """Positive where both the gate and the magnitude are."""
            return torch.minimum(s + self.b_gate[among], s * scale_F[among] + self.b_mag[among])

        chosen = pairs_above(s_BF, s_BF.new_zeros(()), score)
        of_N = chosen.latents
        values_N = s_BF[chosen.rows, of_N] * scale_F[of_N] + self.b_mag[of_N]
        return SparseCode(values_N, chosen, s_BF.shape[1], frame)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        x_BD, y_BO = self.normalised(x_BD, y_BO)
        decoder = self.decoder()
        entries = entries_above(-self.b_gate.detach(), x_BD, self.W_enc, self.encoder_bias_F())
        pi = F.relu(entries.pre + entries.at(self.b_gate))
        open_gate = pi.detach() > 0
        f = F.relu(entries.pre * entries.at(self.r_mag.exp()) + entries.at(self.b_mag)) * open_gate
        error_BO = y_BO - self.latents.all_reduce(entries.decode(f, decoder.atoms_FO)) - self.offset(x_BD)
        gate_BO = self.latents.all_reduce(entries.decode(pi, decoder.atoms_FO.detach()))
        reconstruction = error_BO.square().sum() / total_rows
        gate_error = (y_BO - gate_BO - self.offset(x_BD).detach()).square().sum() / total_rows
        norms = None if decoder.norms_F is None else entries.at(decoder.norms_F)
        sparsity = self.latents.all_reduce(self.penalty(pi, norms).sum()) / total_rows
        fired_F = entries.count(f.detach() > 0)
        sums = {
            **self.batch_stats(y_BO, error_BO, fired_F),
            "reconstruction": reconstruction.detach(),
            "gate_error": gate_error.detach(),
            "sparsity": sparsity.detach(),
            **self.further_sums(pi.detach(), norms, total_rows),
        }
        coefficient = self.coefficient
        loss = reconstruction + gate_error + coefficient * sparsity
        return LossOutput(loss, sums, fired_F, {"coefficient": coefficient})


@dataclass(frozen=True, kw_only=True)
class GatedPAnnealConfig(PSchedule, GatedConfig):
    """Options of Gated with p-annealing."""

    architecture = "gated_p_anneal"


class GatedPAnneal(PAnnealing, Gated):
    """Gated sparse autoencoder whose penalty is the Lp^p norm of the gate, with p annealed.

        f, x_hat and the auxiliary term as in Gated
        penalty = lambda * sum over latents i of relu(pi_i)^p,  p as in p-annealing

    At each jump of p lambda jumps with it, so that the penalty keeps its size.
    """

    Config = GatedPAnnealConfig
    paper = "Karvonen et al., Measuring progress in dictionary learning with board games (2024), arXiv:2408.00113"
    config: GatedPAnnealConfig
