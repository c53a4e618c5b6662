"""BatchTopK: the k * B largest activations of the whole batch are active.

Shapes: B rows on this rank, F latents, N chosen pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lexray.storage.file_settings import Decay
from lexray.training.codes.base import Host
from lexray.training.codes.code_cost import CodeCost, StepShape
from lexray.training.codes.folding import Folding
from lexray.training.codes.topk import TopK, TopKConfig, topk_cost
from lexray.training.mesh.axes import Chosen
from lexray.training.objectives.forward import BatchSums
from lexray.training.ops.linear import Decoder
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import Score, pairs_above, scores_above, subset

EARLY_STEPS = 9
"""The running threshold has a window of about one in so many steps at first."""


@dataclass(frozen=True, kw_only=True)
class BatchTopKConfig(TopKConfig):
    """Options of BatchTopK; the target L0 is k, which need not be whole: k * B is rounded."""

    keeps_k: ClassVar[bool] = False
    kind: str = "batch_topk"
    threshold_decay: Decay = 0.99
    """Share of the running threshold that a step keeps at most; early steps keep less."""


class BatchTopK(TopK):
    """BatchTopK sparse autoencoder.

        z, x_hat and the loss as in TopK
        training:   f = relu(z) where it is among the k * B largest of the *global* batch of B rows, else zero
        inference:  f = relu(z) where it is above theta, else zero
        theta = threshold at which validation rows have the target L0, set by each evaluation, the last one at the end
                of the training; between two of them it follows the smallest activation kept in a batch, by a running
                mean (the paper averages that after training)

    Of activations equal to the smallest one kept the first are kept, in the order of rows and latents. With
    `decoder_norm: free` activations are ranked, and compared with theta, times the norm of their atom.
    """

    kind = "batch_topk"
    Config = BatchTopKConfig
    paper = "Bussmann, Leask and Nanda, BatchTopK sparse autoencoders (2024), arXiv:2412.06410"

    def __init__(self, config: BatchTopKConfig, host: Host) -> None:
        super().__init__(config, host)
        host.register_buffer("threshold", torch.zeros(()))

    def encode(self, x_BD: Tensor, k: int | None = None) -> SparseCode:
        if k is not None:
            return super().encode(x_BD, k)
        z_BF = self.host.encoder().all(x_BD)
        chosen = pairs_above(z_BF, self.host.threshold, self.score(self.host.decoder()))
        return SparseCode(self.value(z_BF[chosen.rows, chosen.latents]), chosen, z_BF.shape[1])

    def choose(self, z_BF: Tensor, k: float, total_rows: int, decoder: Decoder) -> tuple[Chosen, dict[str, Tensor]]:
        score, count = self.score(decoder), round(k * total_rows)
        smallest_kept = self._smallest_kept(z_BF, count, score)
        chosen = pairs_above(z_BF, smallest_kept, score, inclusive=True)
        excess = self.host.axes.pairs.count(len(chosen.latents)) - count
        if excess > 0:
            chosen = self._without_last_ties(chosen, score, z_BF, smallest_kept, excess)
        return chosen, {"smallest_kept": smallest_kept}

    def _without_last_ties(
        self, chosen: Chosen, score: Score, z_BF: Tensor, smallest_kept: Tensor, excess: int
    ) -> Chosen:
        """Drop so many of the pairs that equal the smallest score: the last by row of the global batch, then latent."""
        axes, rows_N = self.host.axes, chosen.rows
        tied_N = score(z_BF[rows_N, chosen.latents], chosen.latents) == smallest_kept
        first_row, first = axes.rows.exclusive_sum(len(z_BF)), axes.latents.slice_of(self.width).start
        place_N = ((first_row + rows_N) * self.width + first + chosen.latents + 1).double()
        last = axes.pairs.kth_largest(torch.where(tied_N, place_N, 0.0), excess)
        return subset(chosen, ~(tied_N & (place_N >= last)))

    def _smallest_kept(self, z_BF: Tensor, count: int, score: Score) -> Tensor:
        """Return the count-th largest positive score of the global batch, zero when there are fewer.

        Sorting all B x F entries is the slowest part of a step, so only those above 0.8 of the running threshold are
        sorted; that is exact whenever enough remain over the whole mesh.
        """
        pairs, threshold = self.host.axes.pairs, self.host.threshold
        smallest_kept = pairs.kth_largest(scores_above(z_BF, 0.8 * threshold, score), count)
        if threshold > 0 and not smallest_kept > 0:
            smallest_kept = pairs.kth_largest(scores_above(z_BF, 0.0, score), count)
        return smallest_kept

    @torch.no_grad()
    def after_step(self, batch: BatchSums) -> None:
        super().after_step(batch)
        smallest_kept, threshold = batch.observed["smallest_kept"], self.host.threshold
        window = self.host.step / (self.host.step + EARLY_STEPS)
        decay = min(self.config.threshold_decay, window) if threshold > 0 else 0.0
        threshold.mul_(decay).add_((1 - decay) * smallest_kept)

    @torch.no_grad()
    def calibrate(self, inputs: Callable[[], Iterable[Tensor]]) -> None:
        """Set the threshold at which these rows have the target L0, where they have as many activations."""
        axes, encoder, score = self.host.axes, self.host.encoder(), self.score(self.host.decoder())
        for lowest in (0.5 * self.host.threshold, 0.0):
            kept = [(scores_above(z_BF, lowest, score), len(z_BF)) for z_BF in map(encoder.all, inputs())]
            scores_N = torch.cat([self.host.threshold.new_zeros(0), *(scores for scores, _ in kept)])
            num_rows = axes.rows.all_reduce(self.host.threshold.new_tensor(float(sum(rows for _, rows in kept))))
            count = max(1, round(self.target_l0 * float(num_rows)))
            if (smallest_kept := axes.pairs.kth_largest(scores_N, count)) > 0:
                self.host.threshold.copy_(smallest_kept)
                return

    terms = TopK.topk_terms

    def fold(self) -> Folding:
        return Folding(
            activation="jumprelu",
            k=round(self.target_l0),
            ranks_by_norm=True,
            threshold_F=self.host.threshold.expand(self.num_latents),
        )

    @classmethod
    def cost(cls, config: Any, shape: StepShape) -> CodeCost:
        """In the first step half of all entries are candidates, and all where pre-activations lean to one side."""
        return topk_cost(config, shape, matrices=3.0 if shape.skewed else 2.0, over_batch=True)
