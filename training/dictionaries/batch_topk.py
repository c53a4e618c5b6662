"""BatchTopK: the k * B largest activations of the whole batch are active.

Shapes: B rows on this rank, F latents, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from storage.errors import UserError
from training.axes import Chosen
from training.code import Code
from training.dictionaries.base import BatchSums
from training.dictionaries.topk import TopK, TopKConfig


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(TopKConfig):
    """Options of BatchTopK; the target L0 is k."""

    architecture = "batch_topk"

    threshold_decay: float = 0.99
    """Share of the running threshold that a step keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_decay < 1:
            raise UserError(f"threshold_decay: {self.threshold_decay:g} must be at least 0 and below 1")


class BatchTopK(TopK):
    """BatchTopK sparse autoencoder. Bussmann, Leask and Nanda, BatchTopK sparse autoencoders (2024).

        z, x_hat and the loss as in TopK
        training:   f = relu(z) where it is among the k * B largest of the *global* batch of B rows, else zero
        inference:  f = relu(z) where it is above theta, else zero
        theta = running mean of the smallest activation kept in a batch (the paper averages it after training)

    An activation equal to the smallest one kept is kept too.
    """

    Config = BatchTopKConfig
    config: BatchTopKConfig
    threshold: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("threshold", torch.zeros(()))

    def encode(self, x_BD: Tensor) -> Code:
        z_BF = F.relu(self.preactivations(self.normalise(x_BD)))
        return Code.where(z_BF > self.threshold, z_BF)

    def choose(self, z_BF: Tensor, total_rows: int) -> tuple[Chosen, dict[str, Tensor]]:
        smallest_kept = self._smallest_kept(z_BF, int(self.config.target_l0 * total_rows))
        mask_BF = (z_BF >= smallest_kept) & (z_BF > 0)
        return Code.where(mask_BF, z_BF).chosen, {"smallest_kept": smallest_kept}

    def _smallest_kept(self, z_BF: Tensor, count: int) -> Tensor:
        """The count-th largest positive entry of the global batch, zero when there are fewer.

        Sorting all B x F entries is the slowest part of a step, so only those above 0.8 of the running threshold are
        sorted; that is exact whenever enough remain, which is counted over all ranks.
        """
        candidates = z_BF[z_BF > 0.8 * self.threshold]
        if int(self.rows.sum(torch.tensor(len(candidates), device=z_BF.device))) < count:
            candidates = z_BF[z_BF > 0]
        return self.rows.kth_largest(candidates, count)

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        smallest_kept = batch.observed["smallest_kept"]
        started = bool(self.threshold > 0)
        decay = self.config.threshold_decay if started else 0.0
        self.threshold.mul_(decay).add_((1 - decay) * smallest_kept)
