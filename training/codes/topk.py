"""TopK: the k latents with the largest pre-activations are active.

Shapes: B rows on this rank, D input width, O output width, F latents, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.auxk import auxk_term
from lexray.training.dictionaries.base import LossOutput
from lexray.training.dictionaries.learned import Decoder, LearnedConfig, LearnedDictionary
from lexray.training.mesh.axes import Axes, Chosen
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import chosen_preactivations, sparse_decode
from lexray.training.ops.topk import Score, topk


@dataclass(frozen=True, kw_only=True)
class TopKConfig(LearnedConfig):
    """Options of TopK; the target L0 is k."""

    architecture = "topk"

    aux_weight: float = 1 / 32
    """Weight of the AuxK term; 0 switches it off."""
    k_aux: int | None = None
    """Dead latents per row that model the residual; None is half the site's width."""
    multi_topk: bool = False
    """Multi-TopK: add the reconstruction error with 4 k latents over 8, so that other k work at inference."""
    k_start: int | None = None
    """Number of active latents at the first step, from which k falls linearly; None is k itself."""
    k_anneal: float = 0.1
    """Share of the steps over which k falls from `k_start`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keeps_k and self.target_l0 != int(self.target_l0):
            raise UserError(
                f"target_l0: {self.target_l0:g} is not a whole number, and {self.architecture} keeps k latents"
            )
        if self.aux_weight < 0:
            raise UserError(f"aux_weight: {self.aux_weight:g} is below 0")
        if self.k_aux is not None and self.k_aux < 1:
            raise UserError(f"k_aux: {self.k_aux} must be at least 1; aux_weight 0 switches AuxK off")
        if self.k_start is not None and not self.target_l0 <= self.k_start <= self.width:
            raise UserError(
                f"k_start: {self.k_start} must be from target_l0 {self.target_l0:g} to the width {self.width}"
            )
        if not 0 < self.k_anneal <= 1:
            raise UserError(f"k_anneal: {self.k_anneal:g} must be above 0 and at most 1")

    @property
    def keeps_k(self) -> bool:
        """Whether the code keeps a whole number of latents."""
        return True


class Reconstruction(NamedTuple):
    """What a choice of latents gives."""

    loss: Tensor
    """Sum over this rank's rows, with gradient."""
    error_BO: Tensor
    """Target minus reconstruction by all chosen latents."""


class TopK(LearnedDictionary):
    """TopK sparse autoencoder.

        z = W_enc (x - b_dec) + b_enc
        f = the k largest entries of relu(z), the others zero
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + aux_weight * AuxK

    x is the normalised input. A chosen entry that relu set to zero is not active. With `decoder_norm: free` the
    largest entries of relu(z) * ||atom|| are chosen. Multi-TopK adds 1/8 of the squared error with 4 k latents.
    """

    Config = TopKConfig
    paper = "Gao et al., Scaling and evaluating sparse autoencoders (2024), arXiv:2406.04093"
    config: TopKConfig

    # What a family changes -------------------------------------------------------------------------------------

    def value(self, z: Tensor) -> Tensor:
        """Activations of chosen pre-activations."""
        return F.relu(z)

    def magnitude(self, z: Tensor) -> Tensor:
        """What pre-activations are ranked by, before norms; positive where a latent may be active."""
        return z

    def choose(self, z_BF: Tensor, k: int, total_rows: int, decoder: Decoder) -> tuple[Chosen, dict[str, Tensor]]:
        """The latents that train on this batch, and what was observed on the way."""
        return self.select(z_BF, k, decoder), {}

    def select(self, z_BF: Tensor, k: int, decoder: Decoder) -> Chosen:
        """The latents of each row at inference."""
        # By the entries themselves where that gives the same order: it spares a pass over the matrix.
        plain = decoder.norms_F is None and type(self).magnitude is TopK.magnitude
        return topk(z_BF, k, self.latents, None if plain else self.score(decoder))

    def reconstruct(self, values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor) -> Reconstruction:
        """The error that is trained, for targets without their offset."""
        error_BO = target_BO - self.latents.all_reduce(sparse_decode(values_N, chosen, decoder.atoms_FO))
        return Reconstruction(error_BO.square().sum(), error_BO)

    # The contract ----------------------------------------------------------------------------------------------

    def score(self, decoder: Decoder) -> Score:
        """How pairs are ranked: magnitude times the atom's norm."""
        norms_F = None if decoder.norms_F is None else decoder.norms_F.detach()
        if norms_F is None:
            return lambda z, among: self.magnitude(z)
        return lambda z, among: self.magnitude(z) * norms_F[among]

    @property
    def k(self) -> int:
        """How many latents are kept at this step of the training."""
        k, start = int(self.config.target_l0), self.config.k_start
        if start is None:
            return k
        left = max(0.0, 1 - self.progress / self.config.k_anneal)
        return round(k + (start - k) * left)

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        """The code of raw activations; `k` is by default the one that was trained."""
        x_BD, frame = self.normalised_with_frame(x_BD)
        z_BF = self.preactivations(x_BD)
        chosen = self.select(z_BF, k or int(self.config.target_l0), self.decoder())
        return SparseCode(self.value(z_BF[chosen.rows, chosen.latents]), chosen, z_BF.shape[1], frame)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        x_BD, y_BO = self.normalised(x_BD, y_BO)
        bias_F, decoder = self.encoder_bias_F(), self.decoder()
        target_BO = y_BO - self.offset(x_BD)
        with torch.no_grad():
            z_BF = F.linear(x_BD, self.W_enc, bias_F)
            chosen, observed = self.choose(z_BF, self.k, total_rows, decoder)
        values_N = self.value(chosen_preactivations(z_BF, chosen, x_BD, self.W_enc, bias_F))
        reconstruction = self.reconstruct(values_N, chosen, decoder, target_BO)
        fired_F = SparseCode(values_N.detach(), chosen, len(self.W_enc)).fired()
        loss = reconstruction.loss / total_rows
        sums = {**self.batch_stats(y_BO, reconstruction.error_BO, fired_F), "reconstruction": loss.detach()}
        if self.config.multi_topk:
            multi = self._multi(z_BF, x_BD, bias_F, decoder, target_BO, total_rows)
            loss, sums = loss + multi / 8, {**sums, "multi": multi.detach()}
        aux = x_BD.new_zeros(())
        if self.config.aux_weight:
            aux = self._aux(z_BF, x_BD, bias_F, decoder, reconstruction.error_BO, total_rows)
        return LossOutput(loss + self.config.aux_weight * aux, {**sums, "aux": aux.detach()}, fired_F, observed)

    def _multi(
        self, z_BF: Tensor, x_BD: Tensor, bias_F: Tensor, decoder: Decoder, target_BO: Tensor, total_rows: int
    ) -> Tensor:
        """Squared error with 4 k latents, of the mean row (Gao et al., 2024, section 5.3)."""
        with torch.no_grad():
            chosen, _ = self.choose(z_BF, min(4 * self.k, self.config.width), total_rows, decoder)
        values_N = self.value(chosen_preactivations(z_BF, chosen, x_BD, self.W_enc, bias_F))
        return self.reconstruct(values_N, chosen, decoder, target_BO).loss / total_rows

    def _aux(
        self, z_BF: Tensor, x_BD: Tensor, bias_F: Tensor, decoder: Decoder, error_BO: Tensor, total_rows: int
    ) -> Tensor:
        return auxk_term(
            self.dead_F, x_BD, error_BO, self.W_enc, bias_F, decoder.atoms_FO, z_BF=z_BF, score=self.score(decoder),
            value=self.value, k_aux=self.config.k_aux or max(1, error_BO.shape[1] // 2), total_rows=total_rows,
            axes=Axes(self.rows, self.latents, self.pairs),
        )  # fmt: skip
