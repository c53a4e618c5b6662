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


@dataclass(frozen=True, kw_only=True)
class CrosscoderConfig(LearnedConfig):
    """Options of crosscoders."""

    decoder_norm: DecoderNorm = "free"
    """`free`: selection and penalty see the sum of an atom's norms over the sites; `unit` keeps that sum at 1."""
    site_init: Literal["same", "independent"] = "same"
    """Whether a latent starts with the same direction at every site (where widths are equal)."""


class Crosscoder(LearnedDictionary):
    """Crosscoder with an L1 penalty.

        z = sum over sites s of W_enc_s (x_s - b_dec_s) + b_enc
        f = relu(z)
        x_hat_s = f W_dec_s + b_dec_s
        loss = mean over rows of sum over s of ||x_s - x_hat_s||^2
               + lambda * mean over rows of sum over latents i of f_i sum over s of ||W_dec_s_i||

    Every site is normalised on its own, so each has variance 1 in the loss. W_enc, W_dec and b_dec hold the sites side
    by side; an atom's norm is the sum of its norms at the sites. Subtracting b_dec is absorbed by b_enc in the
    original, which does not.
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
        return torch.stack([part.norm(dim=1) for part in self.site_atoms(W_dec_FO)]).sum(0)

    def initial_atoms(self, generator: torch.Generator) -> Tensor:
        """Return directions of the same length at every site, whose lengths add up to 1."""
        widths = [site.width for site in self.sites.inputs]
        parts = [F.normalize(torch.randn(self.config.width, width, generator=generator), dim=1) for width in widths]
        if self.config.site_init == "same" and len(set(widths)) == 1:
            parts = [parts[0]] * len(widths)
        return torch.cat(parts, 1) / len(widths)

    def fold(self) -> Folding:
        raise UserError(
            f"{self.config.architecture}: no format has a place for a crosscoder; its encoder reads all sites at once"
        )


class CrosscoderBatchTopK(Crosscoder):
    """Crosscoder with BatchTopK activation: no shrinkage, so fewer latents that only look specific to one site.

        z and x_hat as in Crosscoder
        training:   f = relu(z) where relu(z_i) * sum over s ||W_dec_s_i|| is among the k * B largest of the batch
        inference:  where it is above the running threshold
        loss = mean over rows of sum over s of ||x_s - x_hat_s||^2 + aux_weight * AuxK

    The squared error is the paper's; its code uses the norm of the error instead.
    """

    paper = "Minder et al., Overcoming sparsity artifacts in crosscoders (2025), arXiv:2504.02922"
