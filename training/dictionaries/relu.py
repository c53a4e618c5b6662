"""ReLU: the classic sparse autoencoder with an L1 penalty, driven to a target L0.

Shapes: B rows, D site width, F latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.code import Code
from training.controller import L0Controller
from training.dictionaries.base import BatchSums, Dictionary, DictionaryConfig, Terms, shares


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(DictionaryConfig):
    """Options of ReLU."""

    architecture = "relu"

    initial_coefficient: float = 0.01
    """Weight of the L1 penalty at the first step; the controller moves it from there."""


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
    log_coefficient: Tensor

    def __init__(self, config: ReLUConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.controller = L0Controller(config.target_l0)
        self.register_buffer("log_coefficient", torch.tensor(math.log(config.initial_coefficient), dtype=torch.float64))
        # Half of all latents are active at first: without this their sum would be a multiple of the input.
        with torch.no_grad():
            self.W_enc.mul_(min(1.0, 2 * self.W_enc.shape[1] / config.width))

    def encode(self, x_BD: Tensor) -> Code:
        z_BF = self.preactivations(self.normalise(x_BD))
        return Code.where(z_BF > 0, z_BF)

    def loss(self, x_BD: Tensor, total_rows: int) -> Terms:
        x_BD = self.normalise(x_BD)
        f_BF = F.relu(self.preactivations(x_BD))
        x_hat_BD = self.latents.sum(f_BF @ self.atoms_FD()) + self.b_dec
        error_BD = x_BD - x_hat_BD
        reconstruction = error_BD.square().sum() / total_rows
        sparsity = f_BF.sum() / total_rows
        fired_F = (f_BF > 0).sum(0)
        sums = {
            **shares(x_BD, error_BD, fired_F),
            "reconstruction": reconstruction.detach(),
            "sparsity": sparsity.detach(),
        }
        coefficient = self.log_coefficient.exp().float()
        return Terms(reconstruction + coefficient * sparsity, sums, fired_F, {"coefficient": coefficient})

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        l0 = batch.sums["active"] / batch.rows
        self.log_coefficient.fill_(self.controller.next(float(self.log_coefficient), l0))
