"""GroupMax: the latents are cut into k groups, and the largest of each group is active.

Shapes: B rows, F latents, K groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.learned import Decoder
from lexray.training.dictionaries.topk import TopK, TopKConfig
from lexray.training.mesh.axes import Chosen, evenly_chosen
from lexray.training.ops.topk import ALL, joined, row_chunks


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

    def check_slices(self, slices: int) -> None:
        """Raise UserError unless each slice has whole groups."""
        if int(self.target_l0) % slices:
            raise UserError(
                f"mesh.feature: {slices} parts, but {self.target_l0:g} groups (target_l0) cannot be dealt to them"
            )


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
        num_groups = int(self.config.target_l0)
        score, per_group = self.score(decoder), self.config.width // num_groups
        parts = []
        for chunk in row_chunks(z_BF):
            best = score(chunk, ALL).unflatten(1, (-1, per_group)).max(dim=2)
            latents_BK = best.indices + torch.arange(0, z_BF.shape[1], per_group, device=z_BF.device)
            if k < num_groups:
                groups = self.latents.topk(best.values, k)
                parts.append(Chosen(latents_BK[groups.rows, groups.latents], groups.offsets))
            else:
                parts.append(evenly_chosen(latents_BK))
        return joined(parts)
