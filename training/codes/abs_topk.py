"""AbsTopK: the k latents with the largest magnitude are active, with their sign.

Shapes: as in `topk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.topk import TopK, TopKConfig, topk_cost


@dataclass(frozen=True, kw_only=True)
class AbsTopKConfig(TopKConfig):
    """Options of AbsTopK; the target L0 is k."""

    kind: str = "abs_topk"


class AbsTopK(TopK):
    """TopK sparse autoencoder whose code has signs: one latent stands for a direction and its opposite.

        z = W_enc (x - b_dec) + b_enc
        f = the k entries of z with the largest |z|, the others zero
        x_hat and the loss as in TopK

    AuxK ranks dead latents by |z| and keeps their sign too.
    """

    kind = "abs_topk"
    Config = AbsTopKConfig
    signed = True
    paper = "Zhu et al., AbsTopK: rethinking sparse autoencoders for bidirectional features (2025), arXiv:2510.00404"

    def value(self, z: Tensor) -> Tensor:
        return z

    def magnitude(self, z: Tensor) -> Tensor:
        return z.abs()

    terms = TopK.topk_terms

    def fold(self) -> Folding:
        return Folding(activation="abs_topk", k=int(self.target_l0), ranks_by_norm=True)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        return topk_cost(config, shape, matrices=1.0)
