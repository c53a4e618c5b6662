"""GroupMax: the latents are cut into k groups, and the largest of each group is active.

Shapes: B rows, F latents, K groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.topk import TopK, TopKConfig, topk_cost
from lexray.training.mesh.axes import Chosen, evenly_chosen
from lexray.training.ops.linear import Decoder
from lexray.training.ops.topk import ALL, joined, row_chunks


@dataclass(frozen=True, kw_only=True)
class GroupMaxConfig(TopKConfig):
    """Options of GroupMax; the target L0 is the number of groups."""

    kind: str = "group_max"

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if width % target_l0:
            raise UserError(f"target_l0: the width {width} is not a multiple of {target_l0:g} groups")
        option = "k_start" if self.k_start is not None else "multi_topk"
        if self.k_start is not None or self.multi_topk:
            raise UserError(f"{option}: group_max has one latent of each of target_l0 groups; leave it out")

    def check_slices(self, slices: int, target_l0: float) -> None:
        """Raise UserError unless each slice has whole groups."""
        if int(target_l0) % slices:
            raise UserError(
                f"mesh.feature: {slices} parts, but {target_l0:g} groups (target_l0) cannot be dealt to them"
            )


class GroupMax(TopK):
    """GroupMax sparse autoencoder: TopK without a sort.

        z = W_enc (x - b_dec) + b_enc
        f = in each of k groups of width / k consecutive latents, the largest entry of relu(z); the others zero
        x_hat and the loss as in TopK

    At inference `k` other than the trained one keeps the k largest of those.
    """

    kind = "group_max"
    Config = GroupMaxConfig
    paper = "Belrose et al., sparsify (2025), github.com/EleutherAI/sparsify"

    def select(self, z_BF: Tensor, k: int, decoder: Decoder) -> Chosen:
        num_groups = int(self.target_l0)
        score, per_group = self.score(decoder), self.width // num_groups
        parts = []
        for chunk in row_chunks(z_BF):
            best = score(chunk, ALL).unflatten(1, (-1, per_group)).max(dim=2)
            latents_BK = best.indices + torch.arange(0, z_BF.shape[1], per_group, device=z_BF.device)
            if k < num_groups:
                groups = self.host.axes.latents.topk(best.values, k)
                parts.append(Chosen(latents_BK[groups.rows, groups.latents], groups.offsets))
            else:
                parts.append(evenly_chosen(latents_BK))
        return joined(parts)

    terms = TopK.topk_terms

    def fold(self) -> Folding:
        return Folding(activation="group_max", k=int(self.target_l0), ranks_by_norm=True)

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """Every slice has whole groups: none offers anything to the others."""
        cost = topk_cost(config, shape._replace(slices=1), matrices=1.0)
        return cost._replace(all_gather=0)
