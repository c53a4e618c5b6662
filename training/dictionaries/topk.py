"""TopK: the k latents with the largest pre-activations are active.

Shapes: B rows, D site width, F latents, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.errors import UserError
from training.axes import Chosen
from training.code import Code
from training.dictionaries.auxk import auxk_term
from training.dictionaries.base import Dictionary, DictionaryConfig, Terms, shares
from training.sparse_ops import chosen_preactivations, sparse_decode


@dataclass(frozen=True, kw_only=True)
class TopKConfig(DictionaryConfig):
    """Options of TopK; the target L0 is k."""

    architecture = "topk"

    aux_weight: float = 1 / 32
    """Weight of the AuxK term; 0 switches it off."""
    k_aux: int | None = None
    """Dead latents per row that model the residual; None is half the site's width."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 != int(self.target_l0):
            raise UserError(
                f"target_l0: {self.target_l0:g} is not a whole number, and {self.architecture} keeps k latents"
            )
        if self.aux_weight < 0:
            raise UserError(f"aux_weight: {self.aux_weight:g} is below 0")
        if self.k_aux is not None and self.k_aux < 1:
            raise UserError(f"k_aux: {self.k_aux} must be at least 1; aux_weight 0 switches AuxK off")


class TopK(Dictionary):
    """TopK sparse autoencoder. Gao et al., Scaling and evaluating sparse autoencoders (2024).

        z = W_enc (x - b_dec) + b_enc
        f = the k largest entries of relu(z), the others zero
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + aux_weight * AuxK

    x is the normalised input. A chosen entry that relu set to zero is not active.
    """

    Config = TopKConfig
    config: TopKConfig

    def encode(self, x_BD: Tensor) -> Code:
        z_BF = F.relu(self.preactivations(self.normalise(x_BD)))
        chosen = self.latents.topk(z_BF, int(self.config.target_l0))
        return Code(z_BF[chosen.rows, chosen.latents], chosen, z_BF.shape[1])

    def choose(self, z_BF: Tensor, total_rows: int) -> tuple[Chosen, dict[str, Tensor]]:
        """The latents that train on this batch, and what was observed on the way. `z_BF` is not rectified."""
        return self.latents.topk(z_BF, int(self.config.target_l0)), {}

    def loss(self, x_BD: Tensor, total_rows: int) -> Terms:
        x_BD = self.normalise(x_BD)
        W_enc, bias_F, atoms_FD = self.W_enc, self.encoder_bias_F(), self.atoms_FD()
        with torch.no_grad():
            z_BF = F.linear(x_BD, W_enc, bias_F)
            chosen, observed = self.choose(z_BF, total_rows)
        values_N = F.relu(chosen_preactivations(z_BF, chosen, x_BD, W_enc, bias_F))
        x_hat_BD = self.latents.sum(sparse_decode(values_N, chosen, atoms_FD)) + self.b_dec
        error_BD = x_BD - x_hat_BD
        reconstruction = error_BD.square().sum() / total_rows
        aux = x_BD.new_zeros(())
        if self.config.aux_weight:
            aux = self._aux(x_BD, error_BD, W_enc, bias_F, atoms_FD, total_rows)
        code = Code(values_N.detach(), chosen, len(W_enc))
        fired_F = code.fired()
        sums = {**shares(x_BD, error_BD, fired_F), "reconstruction": reconstruction.detach(), "aux": aux.detach()}
        return Terms(reconstruction + self.config.aux_weight * aux, sums, fired_F, observed)

    def _aux(
        self, x_BD: Tensor, error_BD: Tensor, W_enc: Tensor, bias_F: Tensor, atoms_FD: Tensor, total_rows: int
    ) -> Tensor:
        k_aux = self.config.k_aux or max(1, x_BD.shape[1] // 2)
        return auxk_term(
            self.dead_F, x_BD, error_BD, W_enc, bias_F, atoms_FD,
            k_aux=k_aux, total_rows=total_rows, latents=self.latents, rows=self.rows,
        )  # fmt: skip
