"""Crosscoders: one code for several sites at once, layers of a model or models on the same text.

Shapes: B rows, S sites, D width of all sites side by side, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.folding import Folding
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.learned import DecoderNorm, LearnedConfig, LearnedDictionary
from lexray.training.dictionaries.normalisers import Sites

MIXED_SUM = 0.1
"""Weight of the sum of the lengths in `code_norm: mixed`, as in the code of Minder et al. (2025)."""


@dataclass(frozen=True, kw_only=True)
class CrosscoderConfig(LearnedConfig):
    """Options of crosscoders."""

    decoder_norm: DecoderNorm = "free"
    """`free`: selection and penalty see an atom's `code_norm`; `unit` keeps that at 1; `ignored` sees none."""
    code_norm: Literal["sum", "concatenated", "mixed"] = "sum"
    """Norm of an atom with parts d_s at the sites: `sum` of ||d_s||; `concatenated`, sqrt(sum of ||d_s||^2); `mixed`,
    that plus 0.1 times the sum."""
    site_init: Literal["same", "independent"] = "same"
    """Whether a latent starts with the same direction at every site (where widths are equal)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder_norm == "ignored" and self.code_norm != "sum":
            raise UserError(f"code_norm: {self.code_norm} does nothing, since `decoder_norm: ignored` sees no norms")


class Crosscoder(LearnedDictionary):
    """Crosscoder with an L1 penalty.

        z = sum over sites s of W_enc_s (x_s - b_dec_s) + b_enc
        f = relu(z)
        x_hat_s = f W_dec_s + b_dec_s
        loss = mean over rows of sum over s of ||x_s - x_hat_s||^2
               + lambda * mean over rows of sum over latents i of f_i norm_i
        norm_i = sum over s of ||W_dec_s_i||

    Every site is normalised on its own, so each has variance 1 in the loss. W_enc, W_dec and b_dec hold the sites side
    by side. Subtracting b_dec is absorbed by b_enc in the original, which does not.

    `code_norm` has other norms of the code of Minder et al. (2025): that of all sites' parts side by side, by which an
    atom of several sites costs no more than one of the same length at one site, and both together. No norm, their
    `none`, is `decoder_norm: ignored`. A norm for each site, their `decoupled`, is not offered: this penalty is the
    same with it as with the sum, and BatchTopK would give every site a code of its own.
    """

    Config = CrosscoderConfig
    paper = "Lindsey et al., Sparse crosscoders for cross-layer features (2024), transformer-circuits.pub"
    kind = "crosscoder"
    config: CrosscoderConfig

    @classmethod
    def check_sites(cls, config: DictionaryConfig, sites: Sites) -> None:
        if len(sites.inputs) < 2:
            raise UserError(f"{config.architecture} reads several sites at once, {len(sites.inputs)} is given")
        super().check_sites(config, sites)

    def site_atoms(self, atoms_FD: Tensor) -> list[Tensor]:
        """Return the atoms' parts at each site (F, width of the site)."""
        return list(atoms_FD.split([site.width for site in self.sites.inputs], dim=1))

    def code_norms(self, W_dec_FO: Tensor) -> Tensor:
        if self.config.code_norm == "concatenated":
            return W_dec_FO.norm(dim=1)
        summed_F = torch.stack([part.norm(dim=1) for part in self.site_atoms(W_dec_FO)]).sum(0)
        return summed_F if self.config.code_norm == "sum" else W_dec_FO.norm(dim=1) + MIXED_SUM * summed_F

    def initial_atoms(self, generator: torch.Generator) -> Tensor:
        """Return directions of the same length at every site, of norm 1."""
        widths = [site.width for site in self.sites.inputs]
        parts = [F.normalize(torch.randn(self.config.width, width, generator=generator), dim=1) for width in widths]
        if self.config.site_init == "same" and len(set(widths)) == 1:
            parts = [parts[0]] * len(widths)
        together = len(widths) ** 0.5
        norms = {"sum": len(widths), "concatenated": together, "mixed": together + MIXED_SUM * len(widths)}
        return torch.cat(parts, 1) / norms[self.config.code_norm]

    def fold(self) -> Folding:
        raise UserError(
            f"{self.config.architecture}: no format has a place for a crosscoder; its encoder reads all sites at once"
        )


class CrosscoderBatchTopK(Crosscoder):
    """Crosscoder with BatchTopK activation: no shrinkage, so fewer latents that only look specific to one site.

        z and x_hat as in Crosscoder
        training:   f = relu(z) where relu(z_i) * norm_i is among the k * B largest of the batch
        inference:  where it is above the running threshold
        norm_i = sum over s of ||W_dec_s_i||, or as `code_norm` says
        loss = mean over rows of sum over s of ||x_s - x_hat_s||^2 + aux_weight * AuxK

    The squared error is the paper's; its code uses the norm of the error instead.
    """

    paper = "Minder et al., Overcoming sparsity artifacts in crosscoders (2025), arXiv:2504.02922"
