"""HierarchicalTopK: one dictionary trained for every number of active latents up to K at once.

Shapes: B rows, O output width, F latents, K most active latents of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.training.dictionaries.base import powers_of_two_to
from lexray.training.dictionaries.learned import Decoder
from lexray.training.dictionaries.topk import Reconstruction, TopK, TopKConfig
from lexray.training.mesh.axes import Chosen
from lexray.training.ops.sparse_products import prefix_errors


@dataclass(frozen=True, kw_only=True)
class HierarchicalTopKConfig(TopKConfig):
    """Options of HierarchicalTopK; the target L0 is the largest k."""

    architecture = "hierarchical_topk"


class HierarchicalTopK(TopK):
    """TopK sparse autoencoder whose loss is the mean over all k from 1 to K.

        z as in TopK; x_hat_k = the k largest entries of relu(z) times their atoms + b_dec
        loss = mean over rows of (1 / K) * sum over k of ||x - x_hat_k||^2 + aux_weight * AuxK

    With `decoder_norm: free` entries are ranked times the norm of their atom, here as in TopK.
    AuxK models the residual of K latents. Any k up to K works at inference, so a trial gives a curve of the frontier.
    Memory is that of one reconstruction: `prefix_errors` walks the K residuals back instead of keeping them.
    """

    Config = HierarchicalTopKConfig
    paper = "Balagansky et al., Train one sparse autoencoder across multiple sparsity budgets (2025), arXiv:2505.24473"
    config: HierarchicalTopKConfig

    def reconstruct(self, values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor) -> Reconstruction:
        rows_N, latents_N = chosen.rows, chosen.latents
        scores_N = values_N.detach() if decoder.norms_F is None else values_N.detach() * decoder.norms_F[latents_N]
        # Of each row the entries that this rank chose, the others' places left open, in the order of all ranks' scores.
        column_N = torch.arange(len(rows_N), device=rows_N.device) - chosen.offsets[rows_N]
        num_chosen = self.pairs_per_row(chosen)
        scores_BK = scores_N.new_full((len(target_BO), num_chosen), -torch.inf)
        scores_BK[rows_N, column_N] = scores_N
        place_N = self.latents.global_rank(scores_BK)[rows_N, column_N]
        picks_BK = torch.full_like(scores_BK, -1, dtype=torch.int64).index_put((rows_N, place_N), latents_N)
        values_BK = torch.zeros_like(scores_BK).index_put((rows_N, place_N), values_N)
        total, error_BO = prefix_errors(values_BK, picks_BK, decoder.atoms_FO, target_BO, self.latents)
        return Reconstruction(total / num_chosen, error_BO)

    def pairs_per_row(self, chosen: Chosen) -> int:
        """How many latents each row has chosen, on all ranks together."""
        return self.latents.count(len(chosen.latents)) // (len(chosen.offsets) - 1)

    def eval_ks(self) -> list[int]:
        """1, 2, 4... and K."""
        return powers_of_two_to(int(self.config.target_l0))
