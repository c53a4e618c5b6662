"""TopK: the k latents with the largest pre-activations are active.

Shapes: B rows on this rank, D input width, O output width, F latents, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Because, Count, NonNegative, PositiveShare
from lexray.training.codes.base import Code
from lexray.training.codes.code_cost import FLOAT_BYTES, PAIR_BYTES, CodeCost, StepShape, sparse_step
from lexray.training.codes.folding import Folding
from lexray.training.codes.shared_terms import SharedTermsConfig
from lexray.training.mesh.axes import Axes, Chosen
from lexray.training.objectives.auxk import AuxK
from lexray.training.objectives.forward import Batch, Forward, Reconstruction, Weighted, reconstruction_error
from lexray.training.objectives.reconstruction import squared_error
from lexray.training.ops.linear import Decoder
from lexray.training.ops.preactivations import entries_at
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.sparse_products import sparse_decode
from lexray.training.ops.topk import Score, topk


@dataclass(frozen=True, kw_only=True)
class TopKConfig(SharedTermsConfig):
    """Options of TopK; the target L0 is k."""

    keeps_k: ClassVar[bool] = True
    """Whether each row keeps k latents, so that k is a whole number."""
    kind: str = "topk"
    aux_weight: NonNegative = 1 / 32
    """Weight of the AuxK term; 0 switches it off."""
    k_aux: Annotated[Count, Because("aux_weight 0 switches AuxK off")] | None = None
    """Dead latents per row that model the residual; None is half the site's width."""
    multi_topk: bool = False
    """Multi-TopK: add the reconstruction error with 4 k latents over 8, so that other k work at inference."""
    k_start: Count | None = None
    """Number of active latents at the first step, from which k falls linearly; None is k itself."""
    k_anneal: PositiveShare = 0.1
    """Share of the steps over which k falls from `k_start`."""

    def check(self, width: int, target_l0: float) -> None:
        if self.keeps_k and target_l0 != int(target_l0):
            raise UserError(f"target_l0: {target_l0:g} is not a whole number, and {self.kind} keeps k latents")
        super().check(width, target_l0)
        if "auxk" in self.terms:
            raise UserError(f"terms.auxk: {self.kind} has this term already; set aux_weight")
        if self.k_start is not None and not target_l0 <= self.k_start <= width:
            raise UserError(f"k_start: {self.k_start} must be from target_l0 {target_l0:g} to the width {width}")


class TopK(Code):
    """TopK sparse autoencoder.

        z = W_enc (x - b_dec) + b_enc
        f = the k largest entries of relu(z), the others zero
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + aux_weight * AuxK

    x is the normalised input. A chosen entry that relu set to zero is not active. With `decoder_norm: free` the
    largest entries of relu(z) * ||atom|| are chosen. Multi-TopK adds 1/8 of the squared error with 4 k latents.
    """

    kind = "topk"
    Config = TopKConfig
    takes_k = True
    paper = "Gao et al., Scaling and evaluating sparse autoencoders (2024), arXiv:2406.04093"

    # What a family changes -------------------------------------------------------------------------------------

    def value(self, z: Tensor) -> Tensor:
        """Return the activations of chosen pre-activations."""
        return F.relu(z)

    def magnitude(self, z: Tensor) -> Tensor:
        """Return what pre-activations are ranked by, before norms; positive where a latent may be active."""
        return z

    def choose(self, z_BF: Tensor, k: float, total_rows: int, decoder: Decoder) -> tuple[Chosen, dict[str, Tensor]]:
        """Return the latents that train on this batch, and what was observed on the way."""
        return self.select(z_BF, round(k), decoder), {}

    def select(self, z_BF: Tensor, k: int, decoder: Decoder) -> Chosen:
        """Return the latents of each row at inference."""
        # By the entries themselves where that gives the same order: it spares a pass over the matrix.
        plain = decoder.norms_F is None and type(self).magnitude is TopK.magnitude
        return topk(z_BF, k, self.host.axes.latents, None if plain else self.score(decoder))

    def reconstruct(self, values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor) -> Reconstruction:
        """Return the error that is trained."""
        return squared_error(
            target_BO - self.host.axes.latents.all_reduce(sparse_decode(values_N, chosen, decoder.atoms_FO))
        )

    # What every code defines -----------------------------------------------------------------------------------

    def score(self, decoder: Decoder) -> Score:
        """Return how pairs are ranked: by magnitude times the atom's norm."""
        norms_F = None if decoder.norms_F is None else decoder.norms_F.detach()
        if norms_F is None:
            return lambda z, among: self.magnitude(z)
        return lambda z, among: self.magnitude(z) * norms_F[among]

    @property
    def k(self) -> float:
        """Number of latents that are kept a row at this step of the training."""
        start = self.config.k_start
        if start is None:
            return self.target_l0
        left = max(0.0, 1 - self.host.progress / self.config.k_anneal)
        k = self.target_l0 + (start - self.target_l0) * left
        return round(k) if self.config.keeps_k else k

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        z_BF = self.host.encoder().all(x_BD)
        chosen = self.select(z_BF, k or int(self.target_l0), self.host.decoder())
        return SparseCode(self.value(z_BF[chosen.rows, chosen.latents]), chosen, z_BF.shape[1])

    def forward(self, batch: Batch) -> Forward:
        with torch.no_grad():
            z_BF = batch.encoder.all(batch.x_BD)
        return self.chosen_forward(batch, z_BF, self.k)

    def chosen_forward(self, batch: Batch, z_BF: Tensor, k: float) -> Forward:
        """Return the code with `k` latents a row, given all pre-activations without gradient."""
        with torch.no_grad():
            chosen, observed = self.choose(z_BF, k, batch.total_rows, batch.decoder)
        pairs = entries_at(z_BF, chosen, batch.x_BD, batch.encoder)
        values_N = self.value(pairs.pre)
        return Forward(
            batch=batch,
            pairs=pairs,
            values=values_N,
            reconstruction=self.reconstruct(values_N, chosen, batch.decoder, batch.target_BO),
            fired_F=SparseCode(values_N.detach(), chosen, z_BF.shape[1]).fired(),
            z_BF=z_BF,
            observed=observed,
        )

    def multi(self, forward: Forward, axes: Axes) -> Tensor:
        """Mean over rows of the squared error with 4 k latents (Gao et al., 2024, section 5.3)."""
        assert forward.z_BF is not None
        more = self.chosen_forward(forward.batch, forward.z_BF, min(4 * self.k, self.width))
        return reconstruction_error(more, axes)

    def topk_terms(self) -> list[Weighted]:
        """Return the reconstruction, Multi-TopK and AuxK."""
        found = [Weighted("reconstruction", reconstruction_error)]
        if self.config.multi_topk:
            found.append(Weighted("multi", self.multi, 1 / 8))
        if self.config.aux_weight:
            auxk = AuxK(score=self.score, value=self.value, k_aux=self.config.k_aux)
            found.append(Weighted("aux", auxk, self.config.aux_weight))
        return found + self.config.shared_terms(self.score, self.value)

    @classmethod
    def auxk_pairs(cls, config: Any, shape: StepShape) -> int:
        """Return the number of dead latents per row that AuxK sees at most."""
        return min(config.k_aux or shape.output_width // 2, shape.latents) if config.aux_weight else 0

    terms = topk_terms

    def fold(self) -> Folding:
        return Folding(activation="topk", k=int(self.target_l0), ranks_by_norm=True)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return topk_cost(config, shape, matrices=1.0)


def topk_cost(config: Any, shape: StepShape, *, matrices: float, over_batch: bool = False) -> CodeCost:
    """Return the cost of a code that ranks pre-activations; `over_batch` those of the whole batch together."""
    chosen = shape.target_l0 * (4 if config.multi_topk else 1)
    pairs = chosen + TopK.auxk_pairs(config, shape) + config.shared_pairs(shape)
    offered_rows = shape.batch_rows if over_batch else shape.rows
    return CodeCost(
        multiply_adds=sparse_step(shape, pairs / shape.slices),
        matrices=matrices,
        chunked=True,
        pair_bytes=PAIR_BYTES * shape.rows * pairs + shape.offered(shape.target_l0, offered_rows),
        all_reduce=shape.output_bytes,
        all_gather=FLOAT_BYTES * shape.k * offered_rows,
    )
