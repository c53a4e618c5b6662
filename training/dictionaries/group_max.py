"""GroupMax: the latents are cut into k groups, and the largest of each group is active.

Shapes: B rows, F latents, K groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from storage.errors import UserError
from training.axes import Chosen
from training.dictionaries.learned import Decoder
from training.dictionaries.topk import TopK, TopKConfig
from training.selection import ALL, row_chunks


@dataclass(frozen=True, kw_only=True)
class GroupMaxConfig(TopKConfig):
    """Options of GroupMax; the target L0 is the number of groups."""

    architecture = "group_max"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.target_l0:
            raise UserError(f"target_l0: the width {self.width} is not a multiple of {self.target_l0:g} groups")
        if self.k_start is not None or self.multi_topk:
            raise UserError("group_max has one latent of each of target_l0 groups: no k_start, no multi_topk")


class GroupMax(TopK):
    """GroupMax sparse autoencoder: TopK without a sort.

        z = W_enc (x - b_dec) + b_enc
        f = in each of k groups of width / k consecutive latents, the largest entry of relu(z); the others zero
        x_hat and the loss as in TopK

    At inference `k` other than the trained one keeps the k largest of those.
    """

    Config = GroupMaxConfig
    paper = "Belrose et al., sparsify (2025), github.com/EleutherAI/sparsify"
    config: GroupMaxConfig

    def select(self, z_BF: Tensor, k: int, decoder: Decoder) -> Chosen:
        groups = int(self.config.target_l0)
        score, per_group = self.score(decoder), z_BF.shape[1] // groups
        starts_K = torch.arange(groups, device=z_BF.device) * per_group
        parts = []
        for chunk in row_chunks(z_BF):
            best = score(chunk, ALL).view(len(chunk), groups, per_group).max(dim=2)
            latents = best.indices + starts_K
            if k < groups:
                latents = latents.gather(1, best.values.topk(k, dim=1).indices)
            parts.append(latents)
        latents_BK = torch.cat(parts)
        offsets = torch.arange(0, latents_BK.numel() + 1, latents_BK.shape[1], device=z_BF.device)
        return Chosen(latents_BK.flatten(), offsets)
