"""Matryoshka BatchTopK: prefixes of the latents must reconstruct on their own, so that general latents come first.

Shapes: O output width, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.file_settings import Positive
from lexray.training.codes.batch_topk import BatchTopK, BatchTopKConfig
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.topk import TopK
from lexray.training.mesh.axes import Chosen
from lexray.training.objectives.forward import Reconstruction
from lexray.training.objectives.reconstruction import nested_errors
from lexray.training.ops.linear import Decoder


@dataclass(frozen=True, kw_only=True)
class MatryoshkaConfig(BatchTopKConfig):
    """Options of Matryoshka BatchTopK; the target L0 is k."""

    kind: str = "matryoshka_batch_topk"
    prefixes: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
    """Shares of the width that must reconstruct on their own; the whole width is always among them."""
    random_prefixes: Annotated[int, Field(ge=0)] = 0
    """Draw this many prefixes anew for each step instead (and take the whole width); 0 uses `prefixes`."""
    random_power: Positive = 0.5
    """Random prefixes of share s have density proportional to s^-(1 + random_power), from 1 / width up."""

    def check(self, width: int, target_l0: float) -> None:
        super().check(width, target_l0)
        if not self.prefixes or any(not 0 < share <= 1 for share in self.prefixes):
            raise UserError(f"prefixes: {list(self.prefixes)} must be shares above 0 and at most 1")
        if list(self.prefixes) != sorted(set(self.prefixes)):
            raise UserError(f"prefixes: {list(self.prefixes)} must rise")


class MatryoshkaBatchTopK(BatchTopK):
    """Matryoshka sparse autoencoder with BatchTopK activation.

        f as in BatchTopK: one choice among all latents
        x_hat_m = the first m latents of f times their atoms + b_dec,  for prefixes m_1 < ... < m_G = width
        loss = mean over rows of the sum over prefixes of ||x - x_hat_m||^2 + aux_weight * AuxK

    AuxK models the residual of the whole width. The paper sums over prefixes, and so does this; its code also counts
    the bias alone and divides by G + 1, dictionary_learning divides by G^2.
    """

    kind = "matryoshka_batch_topk"
    Config = MatryoshkaConfig
    paper = "Bussmann et al., Learning multi-level features with Matryoshka SAEs (2025), arXiv:2503.17547"

    def prefix_widths(self) -> list[int]:
        """Return m_1 < ... < m_G for this step; the last is the width."""
        width, shares = self.width, list(self.config.prefixes)
        if self.config.random_prefixes:
            generator = torch.Generator().manual_seed((self.host.seed * 1_000_003 + self.host.step) % 2**63)
            uniform = torch.rand(self.config.random_prefixes, generator=generator, dtype=torch.float64)
            # The inverse of the cumulative distribution of s^-(1 + power) between 1 / width and 1.
            power = self.config.random_power
            shares = ((1 - uniform) * (width**power - 1) + 1).pow(-1 / power).tolist()
        return sorted({max(1, round(share * width)) for share in shares} | {width})

    def reconstruct(self, values_N: Tensor, chosen: Chosen, decoder: Decoder, target_BO: Tensor) -> Reconstruction:
        latents = self.host.axes.latents
        first = latents.slice_of(self.width).start
        return nested_errors(values_N, chosen, decoder, target_BO, self.prefix_widths(), first, latents)

    terms = TopK.topk_terms

    def fold(self) -> Folding:
        return Folding(
            activation="jumprelu",
            k=int(self.target_l0),
            ranks_by_norm=True,
            prefix_widths=() if self.config.random_prefixes else tuple(self.prefix_widths()),
            threshold_F=self.host.threshold.expand(self.num_latents),
        )

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """Every prefix has a reconstruction of its own."""
        prefixes = len(config.prefixes) + config.random_prefixes
        cost = BatchTopK.cost(config, shape)
        return cost._replace(
            outputs=cost.outputs + prefixes, reduced_outputs=prefixes, all_reduce=prefixes * shape.output_bytes
        )
