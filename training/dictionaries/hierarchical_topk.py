"""HierarchicalTopK: one dictionary trained for every number of active latents up to K at once.

Shapes: B rows, O output width, F latents, K most active latents of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from training.axes import Chosen
from training.dictionaries.base import powers_of_two_to
from training.dictionaries.learned import Decoder
from training.dictionaries.topk import Reconstruction, TopK, TopKConfig
from training.sparse_ops import prefix_errors


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
        values_BK, latents_BK = values_N.view(len(target_BO), -1), chosen.latents.view(len(target_BO), -1)
        ranks_BK = values_BK.detach() if decoder.norms_F is None else values_BK.detach() * decoder.norms_F[latents_BK]
        order_BK = ranks_BK.argsort(dim=1, descending=True, stable=True)
        values_BK, latents_BK = values_BK.gather(1, order_BK), latents_BK.gather(1, order_BK)
        total, error_BO = prefix_errors(values_BK, latents_BK, decoder.atoms_FO, target_BO)
        return Reconstruction(total / values_BK.shape[1], error_BO)

    def budgets(self) -> list[int]:
        """1, 2, 4... and K."""
        return powers_of_two_to(int(self.config.target_l0))
