"""HierarchicalTopK: one dictionary trained for every number of active latents up to K at once.

Shapes: O output width, N chosen pairs, K most active latents of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lexray.training.codes.base import powers_of_two_to
from lexray.training.codes.code_cost import PAIR_BYTES, CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.topk import TopK, TopKConfig, topk_cost
from lexray.training.mesh.axes import Chosen
from lexray.training.objectives.forward import Reconstruction
from lexray.training.objectives.reconstruction import mean_over_k
from lexray.training.ops.linear import Decoder


@dataclass(frozen=True, kw_only=True)
class HierarchicalTopKConfig(TopKConfig):
    """Options of HierarchicalTopK; the target L0 is the largest k."""

    kind: str = "hierarchical_topk"


class HierarchicalTopK(TopK):
    """TopK sparse autoencoder whose loss is the mean over all k from 1 to K.

        z as in TopK; x_hat_k = the k largest entries of relu(z) times their atoms + b_dec
        loss = mean over rows of (1 / K) * sum over k of ||x - x_hat_k||^2 + aux_weight * AuxK

    With `decoder_norm: free` entries are ranked times the norm of their atom, here as in TopK.
    AuxK models the residual of K latents. Any k up to K works at inference, so a trial gives a curve of the frontier.
    Memory is that of one reconstruction: `prefix_errors` walks the K residuals back instead of keeping them.
    """

    kind = "hierarchical_topk"
    Config = HierarchicalTopKConfig
    paper = "Balagansky et al., Train one sparse autoencoder across multiple sparsity budgets (2025), arXiv:2505.24473"

    def reconstruct(self, values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor) -> Reconstruction:
        return mean_over_k(values_N, chosen, decoder, target_BO, self.host.axes.latents)

    def eval_ks(self) -> list[int]:
        """Return 1, 2, 4... and K."""
        return powers_of_two_to(int(self.target_l0))

    terms = TopK.topk_terms

    def fold(self) -> Folding:
        return Folding(activation="topk", k=int(self.target_l0), ranks_by_norm=True)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """Every residual is added up over the slices, forth and back; so is the order of what was chosen."""
        cost = topk_cost(config, shape, matrices=1.0)
        chosen = shape.target_l0 * (4 if config.multi_topk else 1)
        return cost._replace(
            pair_bytes=cost.pair_bytes + PAIR_BYTES * shape.rows * chosen,  # once more, in the order of their scores
            all_reduce=2 * shape.k * shape.output_bytes,
            all_gather=2 * cost.all_gather,
        )
