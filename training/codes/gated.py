"""Gated codes: one half of the encoder decides which latents are active, the other how much.

Shapes: B rows, F latents, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexray.storage.file_settings import PositiveShare
from lexray.training.codes.base import Host
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding, Gate
from lexray.training.codes.p_anneal import PAnnealConfig, PSchedule
from lexray.training.codes.penalised import PenalisedConfig, penalised_cost
from lexray.training.codes.relu import ReLU
from lexray.training.objectives.forward import Batch, Forward, Weighted, reconstruction_error
from lexray.training.objectives.gate_error import gate_error
from lexray.training.objectives.sparsity import Sparsity
from lexray.training.ops.preactivations import entries_above
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import pairs_above


@dataclass(frozen=True, kw_only=True)
class GatedConfig(PenalisedConfig):
    """Options of Gated."""

    kind: str = "gated"


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

    kind = "gated"
    Config: ClassVar[type[PenalisedConfig]] = GatedConfig
    paper = "Rajamanoharan et al., Improving dictionary learning with gated SAEs (2024), arXiv:2404.16014"
    per_latent: ClassVar[tuple[str, ...]] = ("b_gate", "b_mag", "r_mag")
    encoder_tensors = ("W_enc",)

    def __init__(self, config: PenalisedConfig, host: Host) -> None:
        super().__init__(config, host)
        for name in ("b_gate", "b_mag", "r_mag"):
            host.register_parameter(name, nn.Parameter(torch.zeros(self.num_latents)))

    def restart_values(self, share: float) -> dict[str, float]:
        return {"b_gate": 0.0, "b_mag": 0.0, "r_mag": 0.0}

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        s_BF, host = self.host.encoder().all(x_BD), self.host
        b_gate_F, b_mag_F, scale_F = host.b_gate, host.b_mag, host.r_mag.exp()

        def score(s: Tensor, among: Tensor | slice) -> Tensor:
            """Positive where both the gate and the magnitude are."""
            return torch.minimum(s + b_gate_F[among], s * scale_F[among] + b_mag_F[among])

        chosen = pairs_above(s_BF, s_BF.new_zeros(()), score)
        of_N = chosen.latents
        values_N = s_BF[chosen.rows, of_N] * scale_F[of_N] + b_mag_F[of_N]
        return SparseCode(values_N, chosen, s_BF.shape[1])

    def forward(self, batch: Batch) -> Forward:
        host = self.host
        pairs, z_BF = entries_above(-host.b_gate.detach(), batch.x_BD, batch.encoder)
        pi = F.relu(pairs.pre + pairs.at(host.b_gate))
        open_gate = pi.detach() > 0
        values = F.relu(pairs.pre * pairs.at(host.r_mag.exp()) + pairs.at(host.b_mag)) * open_gate
        return self.forward_of(batch, pairs, z_BF, values, fired_F=pairs.count(values.detach() > 0), gate=pi)

    def gated_terms(self) -> list[Weighted]:
        """Return the two reconstructions, the penalty of the gate and AuxK (of rectified pre-activations)."""
        return [
            Weighted("reconstruction", reconstruction_error),
            Weighted("gate_error", gate_error),
            Weighted("sparsity", Sparsity(self.schedule.penalty), self.coefficient),
            *self.config.shared_terms(self.score, F.relu),
            *self.schedule.terms(),
        ]

    terms = gated_terms

    def fold(self) -> Folding:
        return gated_folding(self.host)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return penalised_cost(config, shape, matrices=7.25, reconstructions=2)


def gated_folding(host: Host) -> Folding:
    """Return the gate of a dictionary's code."""
    gate = Gate(b_gate_F=host.b_gate.detach(), b_mag_F=host.b_mag.detach(), r_mag_F=host.r_mag.detach())
    return Folding(activation="gated", gate=gate)


@dataclass(frozen=True, kw_only=True)
class GatedPAnnealConfig(PAnnealConfig):
    """Options of Gated with p-annealing."""

    kind: str = "gated_p_anneal"
    p_end: PositiveShare = 0.5
    """p at the end; it starts at 1. Lower ones, as in the paper, silence more latents and end off the target L0."""


class GatedPAnneal(Gated):
    """Gated sparse autoencoder whose penalty is the Lp^p norm of the gate, with p annealed.

        f, x_hat and the auxiliary term as in Gated
        penalty = lambda * sum over latents i of relu(pi_i)^p,  p as in p-annealing

    At each jump of p lambda jumps with it, so that the penalty keeps its size.
    """

    kind = "gated_p_anneal"
    Config = GatedPAnnealConfig
    Schedule = PSchedule
    paper = "Karvonen et al., Measuring progress in dictionary learning with board games (2024), arXiv:2408.00113"

    terms = Gated.gated_terms

    def fold(self) -> Folding:
        return gated_folding(self.host)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return penalised_cost(config, shape, matrices=9.25, reconstructions=2)
