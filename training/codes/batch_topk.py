"""BatchTopK: the k * B largest activations of the whole batch are active.

Shapes: B rows on this rank, F latents, N chosen pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import BatchSums
from lexray.training.dictionaries.learned import Decoder
from lexray.training.dictionaries.topk import TopK, TopKConfig
from lexray.training.mesh.axes import Chosen
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import Score, pairs_above, scores_above, subset


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
    """BatchTopK sparse autoencoder.

        z, x_hat and the loss as in TopK
        training:   f = relu(z) where it is among the k * B largest of the *global* batch of B rows, else zero
        inference:  f = relu(z) where it is above theta, else zero
        theta = running mean of the smallest activation kept in a batch (the paper averages it after training)

    Of activations equal to the smallest one kept the first are kept, in the order of rows and latents. With
    `decoder_norm: free` activations are ranked, and compared with theta, times the norm of their atom.
    """

    Config = BatchTopKConfig
    paper = "Bussmann, Leask and Nanda, BatchTopK sparse autoencoders (2024), arXiv:2412.06410"
    config: BatchTopKConfig
    threshold: Tensor

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("threshold", torch.zeros(()))

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        if k is not None:
            return super().encode(x_BD, k)
        x_BD, frame = self.normalised_with_frame(x_BD)
        z_BF = self.preactivations(x_BD)
        chosen = pairs_above(z_BF, self.threshold, self.score(self.decoder()))
        return SparseCode(self.value(z_BF[chosen.rows, chosen.latents]), chosen, z_BF.shape[1], frame)

    def choose(self, z_BF: Tensor, k: int, total_rows: int, decoder: Decoder) -> tuple[Chosen, dict[str, Tensor]]:
        score, count = self.score(decoder), k * total_rows
        smallest_kept = self._smallest_kept(z_BF, count, score)
        chosen = pairs_above(z_BF, smallest_kept, score, inclusive=True)
        excess = self.pairs.count(len(chosen.latents)) - count
        if excess > 0:
            chosen = self._without_last_ties(chosen, score, z_BF, smallest_kept, excess)
        return chosen, {"smallest_kept": smallest_kept}

    def _without_last_ties(
        self, chosen: Chosen, score: Score, z_BF: Tensor, smallest_kept: Tensor, excess: int
    ) -> Chosen:
        """Drop so many of the pairs that equal the smallest score: the last by row of the global batch, then latent."""
        rows_N = chosen.rows
        tied_N = score(z_BF[rows_N, chosen.latents], chosen.latents) == smallest_kept
        first_row, first = self.rows.exclusive_sum(len(z_BF)), self.latents.slice_of(self.config.width).start
        place_N = ((first_row + rows_N) * self.config.width + first + chosen.latents + 1).double()
        last = self.pairs.kth_largest(torch.where(tied_N, place_N, 0.0), excess)
        return subset(chosen, ~(tied_N & (place_N >= last)))

    def _smallest_kept(self, z_BF: Tensor, count: int, score: Score) -> Tensor:
        """The count-th largest positive score of the global batch, zero when there are fewer.

        Sorting all B x F entries is the slowest part of a step, so only those above 0.8 of the running threshold are
        sorted; that is exact whenever enough remain over the whole mesh.
        """
        smallest_kept = self.pairs.kth_largest(scores_above(z_BF, 0.8 * self.threshold, score), count)
        if self.threshold > 0 and not smallest_kept > 0:
            smallest_kept = self.pairs.kth_largest(scores_above(z_BF, 0.0, score), count)
        return smallest_kept

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        smallest_kept = batch.observed["smallest_kept"]
        started = bool(self.threshold > 0)
        decay = self.config.threshold_decay if started else 0.0
        self.threshold.mul_(decay).add_((1 - decay) * smallest_kept)
