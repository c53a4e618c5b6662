"""ReLU: the classic sparse autoencoder with an L1 penalty, driven to a target L0.

Shapes: B rows, D site width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.errors import UserError
from training.code import Code
from training.controller import L0Controller
from training.dictionaries.base import BatchSums, Dictionary, DictionaryConfig, Terms, shares
from training.sparse_ops import chosen_preactivations, sparse_decode

SPARSE_BELOW = 0.06
"""Share of active entries below which sums over them alone are faster."""


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(DictionaryConfig):
    """Options of ReLU."""

    architecture = "relu"

    initial_coefficient: float = 0.01
    """Weight of the L1 penalty at the first step; the controller moves it from there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.initial_coefficient > 0:
            raise UserError(f"initial_coefficient: {self.initial_coefficient:g} must be above 0")


class ReLU(Dictionary):
    """ReLU sparse autoencoder with unit-norm atoms. Bricken et al., Towards monosemanticity (2023).

        z = W_enc (x - b_dec) + b_enc
        f = relu(z)
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum of f

    x is the normalised input; lambda is moved by `L0Controller` until the mean number of active latents is the target.
    """

    Config = ReLUConfig
    config: ReLUConfig

    def __init__(self, config: ReLUConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.controller = L0Controller(config.target_l0, config.initial_coefficient)
        # Half of all latents are active at first: without this their sum would be a multiple of the input.
        with torch.no_grad():
            self.W_enc.mul_(min(1.0, 2 * self.W_enc.shape[1] / config.width))

    def encode(self, x_BD: Tensor) -> Code:
        z_BF = self.preactivations(self.normalise(x_BD))
        return Code.where(z_BF > 0, z_BF)

    def loss(self, x_BD: Tensor, total_rows: int) -> Terms:
        x_BD = self.normalise(x_BD)
        partial_BD, sparsity_sum, fired_F = self._reconstruct(x_BD)
        error_BD = x_BD - self.latents.sum(partial_BD) - self.b_dec
        reconstruction = error_BD.square().sum() / total_rows
        sparsity = sparsity_sum / total_rows
        sums = {
            **shares(x_BD, error_BD, fired_F),
            "reconstruction": reconstruction.detach(),
            "sparsity": sparsity.detach(),
        }
        coefficient = self.controller.coefficient
        return Terms(reconstruction + coefficient * sparsity, sums, fired_F, {"coefficient": coefficient})

    def _reconstruct(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """f atoms (B, D), the sum of f, and the rows in which each latent is active (F).

        Once few latents are active the same sums are taken over those alone, at a fraction of the dense cost.
        """
        bias_F, atoms_FD = self.encoder_bias_F(), self.atoms_FD()
        z_BF = F.linear(x_BD, self.W_enc, bias_F)
        active_BF = z_BF.detach() > 0
        fired_F = active_BF.sum(0)
        if int(fired_F.sum()) > SPARSE_BELOW * z_BF.numel():
            f_BF = F.relu(z_BF)
            return f_BF @ atoms_FD, f_BF.sum(), fired_F
        chosen = Code.where(active_BF, z_BF.detach()).chosen
        values_N = chosen_preactivations(z_BF.detach(), chosen, x_BD, self.W_enc, bias_F)
        return sparse_decode(values_N, chosen, atoms_FD), values_N.sum(), fired_F

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        self.controller.after_step(batch.sums["active"] / batch.rows)

    def after_evaluation(self, metrics: dict[str, float]) -> None:
        self.controller.after_evaluation(metrics["l0"])
