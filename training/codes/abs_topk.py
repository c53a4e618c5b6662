"""AbsTopK: the k latents with the largest magnitude are active, with their sign.

Shapes: as in `topk`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lexray.training.dictionaries.topk import TopK, TopKConfig


@dataclass(frozen=True, kw_only=True)
class AbsTopKConfig(TopKConfig):
    """Options of AbsTopK; the target L0 is k."""

    architecture = "abs_topk"


class AbsTopK(TopK):
    """TopK sparse autoencoder whose code has signs: one latent stands for a direction and its opposite.

        z = W_enc (x - b_dec) + b_enc
        f = the k entries of z with the largest |z|, the others zero
        x_hat and the loss as in TopK

    AuxK ranks dead latents by |z| and keeps their sign too.
    """

    Config = AbsTopKConfig
    paper = "Zhu et al., AbsTopK: rethinking sparse autoencoders for bidirectional features (2025), arXiv:2510.00404"
    config: AbsTopKConfig

    def value(self, z: Tensor) -> Tensor:
        return z

    def magnitude(self, z: Tensor) -> Tensor:
        return z.abs()
