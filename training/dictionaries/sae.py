"""Sparse autoencoders: read a site and reconstruct it; their code says the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lexray.training.dictionaries.learned import DecoderNorm, LearnedConfig, LearnedDictionary


class SAE(LearnedDictionary):
    """Sparse autoencoder: its equations are those of its code."""

    Config: ClassVar[type[LearnedConfig]] = LearnedConfig


@dataclass(frozen=True, kw_only=True)
class FreeNormConfig(LearnedConfig):
    """Options of autoencoders with free atoms."""

    decoder_norm: DecoderNorm = "free"
    """`free`, as in the paper: the penalty sees the atoms' norms. `unit` makes it `relu`."""


class FreeNormSAE(LearnedDictionary):
    """Sparse autoencoder whose atoms have free norms: its equations are those of its code."""

    Config: ClassVar[type[LearnedConfig]] = FreeNormConfig


@dataclass(frozen=True, kw_only=True)
class PursuitSAEConfig(LearnedConfig):
    """Options of autoencoders whose decoder encodes by matching pursuit."""

    decoder_norm: DecoderNorm = "ignored"
    """`ignored`, as in the paper's code: atoms start at length 1 and the loss keeps them near it. `unit` and
    `constrained` keep it exactly, with a higher FVU in every training that was compared."""


class PursuitSAE(LearnedDictionary):
    """Sparse autoencoder whose decoder encodes by matching pursuit: its equations are those of its code."""

    Config: ClassVar[type[LearnedConfig]] = PursuitSAEConfig


class NormWeightedSAE(FreeNormSAE):
    """ReLU sparse autoencoder with free atoms and an L1 penalty weighted by their norms.

        f = relu(W_enc (x - b_dec) + b_enc)
        x_hat = f W_dec + b_dec
        loss = mean over rows of ||x - x_hat||^2 + lambda * sum over latents i of f_i ||W_dec_i||

    The paper does not subtract b_dec from the input; that is the same family of functions, since b_enc absorbs it.
    """

    paper = "Conerly et al., Update on how we train SAEs (April 2024), transformer-circuits.pub"
