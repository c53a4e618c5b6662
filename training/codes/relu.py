"""ReLU dictionaries: a penalty on the activations, driven to a target L0. L1, norm-weighted L1 and tanh.

Shapes: B rows, D input width, O output width, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import LossOutput
from lexray.training.dictionaries.learned import DecoderNorm
from lexray.training.dictionaries.penalised import Penalised, PenalisedConfig
from lexray.training.ops.preactivations import entries_above
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import pairs_above


@dataclass(frozen=True, kw_only=True)
class ReLUConfig(PenalisedConfig):
    """Options of ReLU."""

    architecture = "relu"


class ReLU(Penalised):
    """ReLU sparse autoencoder with unit-norm atoms and an L1 penalty.

        z = W_enc (x - b_dec) + b_enc
        f = relu(z)
        x_hat = f atoms + b_dec
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum of f

    x is the normalised input; lambda is moved by `L0Controller` until the mean number of active latents is the target.
    """

    Config = ReLUConfig
    paper = "Bricken et al., Towards monosemanticity (2023), transformer-circuits.pub"
    config: ReLUConfig

    def penalty(self, f: Tensor, norms: Tensor | None) -> Tensor:
        """The penalty of activations (any shape) whose atoms have these norms (None: all 1), element by element."""
        return f if norms is None else f * norms

    def encode(self, x_BD: Tensor) -> SparseCode:
        x_BD, frame = self.normalised_with_frame(x_BD)
        z_BF = self.preactivations(x_BD)
        chosen = pairs_above(z_BF, z_BF.new_zeros(()), lambda z, among: z)
        return SparseCode(z_BF[chosen.rows, chosen.latents], chosen, z_BF.shape[1], frame)

    def loss(self, x_BD: Tensor, total_rows: int, y_BO: Tensor | None = None) -> LossOutput:
        x_BD, y_BO = self.normalised(x_BD, y_BO)
        decoder = self.decoder()
        entries = entries_above(0.0, x_BD, self.W_enc, self.encoder_bias_F())
        f = F.relu(entries.pre)
        norms = None if decoder.norms_F is None else entries.at(decoder.norms_F)
        error_BO = y_BO - self.latents.all_reduce(entries.decode(f, decoder.atoms_FO)) - self.offset(x_BD)
        reconstruction = error_BO.square().sum() / total_rows
        sparsity = self.latents.all_reduce(self.penalty(f, norms).sum()) / total_rows
        fired_F = entries.count(entries.pre.detach() > 0)
        sums = {
            **self.batch_stats(y_BO, error_BO, fired_F),
            "reconstruction": reconstruction.detach(),
            "sparsity": sparsity.detach(),
            **self.further_sums(f.detach(), norms, total_rows),
        }
        coefficient = self.coefficient
        return LossOutput(reconstruction + coefficient * sparsity, sums, fired_F, {"coefficient": coefficient})

    def further_sums(self, f: Tensor, norms: Tensor | None, total_rows: int) -> dict[str, Tensor]:
        """What else a subclass wants summed over the batch, without gradient."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ReLUNormWeightedConfig(ReLUConfig):
    """Options of ReLU with the norm-weighted penalty."""

    architecture = "relu_norm_weighted"

    decoder_norm: DecoderNorm = "free"
    """`free`, as in the paper: the penalty sees the atoms' norms. `unit` makes it `relu`."""


class ReLUNormWeighted(ReLU):
    """ReLU sparse autoencoder with free atoms and an L1 penalty weighted by their norms.

        f = relu(W_enc (x - b_dec) + b_enc)
        x_hat = f W_dec + b_dec
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of f_i ||W_dec_i||

    The paper does not subtract b_dec from the input; that is the same family of functions, since b_enc absorbs it.
    """

    Config = ReLUNormWeightedConfig
    paper = "Conerly et al., Update on how we train SAEs (April 2024), transformer-circuits.pub"
    config: ReLUNormWeightedConfig


@dataclass(frozen=True, kw_only=True)
class ReLUTanhConfig(ReLUNormWeightedConfig):
    """Options of ReLU with the tanh penalty."""

    architecture = "relu_tanh"

    tanh_scale: float = 4.0
    """c in tanh(c f ||atom||), for inputs of unit variance per dimension: multiplied by sqrt(site width) in ours."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tanh_scale > 0:
            raise UserError(f"tanh_scale: {self.tanh_scale:g} must be above 0")


class ReLUTanh(ReLU):
    """ReLU sparse autoencoder with a penalty that saturates: large activations cost no more than medium ones.

        loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of tanh(c f_i ||W_dec_i||)

    The scale c belongs to inputs whose norm is about sqrt(D) (Anthropic's convention); for the normalised input, whose
    mean squared norm is 1, the same penalty has c sqrt(D).
    """

    Config = ReLUTanhConfig
    paper = "Jermyn et al., Tanh penalty in dictionary learning (February 2024), transformer-circuits.pub"
    config: ReLUTanhConfig

    def penalty(self, f: Tensor, norms: Tensor | None) -> Tensor:
        scale = self.config.tanh_scale * self.sites.input_width**0.5
        return (scale * (f if norms is None else f * norms)).tanh()
