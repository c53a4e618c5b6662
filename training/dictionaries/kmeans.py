"""k-means, the baseline with one active latent.

Shapes: B rows, D width, F centroids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.dictionaries.base import Sample
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.dictionaries.solved import FromRowsConfig, Solved
from lexray.training.mesh.axes import Chosen
from lexray.training.objectives.forward import LossOutput
from lexray.training.ops.kmeans import assign, kmeans, nearest
from lexray.training.ops.sparse_code import SparseCode

STARTING_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class KMeansConfig(FromRowsConfig):
    """Options of k-means; the width is the number of centroids, and the target L0 is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_l0 != 1:
            raise UserError(
                f"target_l0: {self.target_l0:g}, but k-means has one active latent; set it to 1 in `options`"
            )


class KMeans(Solved):
    """Mini-batch k-means.

        f = 1 for the nearest centroid, 0 for the others;  x_hat = that centroid
        centroid <- the mean of all rows that were nearest to it so far, batch by batch

    The start is a few rounds of Lloyd's algorithm on a sample of the stream.
    """

    Config = KMeansConfig
    paper = "Sculley, Web-scale k-means clustering (2010), doi:10.1145/1772690.1772862"
    atoms_from_data = True
    config: KMeansConfig
    sum_counts_F: Tensor

    def __init__(self, config: KMeansConfig, sites: Sites, **kwargs: Any) -> None:
        super().__init__(config, sites, **kwargs)
        self.register_buffer("sum_counts_F", torch.zeros(config.width))

    @property
    def needs_sample(self) -> bool:
        return True

    @torch.no_grad()
    def prepare(self, sample: Sample) -> None:
        super().prepare(sample)
        rows, length = self.normalised_sample(sample), self.output.typical_length
        self.W_dec.copy_(kmeans(rows, self.config.width, self.rows, self.seed, STARTING_ROUNDS, length))

    @torch.no_grad()
    def learn(self, x_BD: Tensor, total_rows: int) -> LossOutput:
        x_BD = self.input.normalise(x_BD)
        terms = self.terms(x_BD, self.code_of(x_BD), total_rows)
        found = assign([x_BD], self.W_dec, self.rows)
        self.sum_counts_F += found.counts_C
        change_FD = found.sums_CD - found.counts_C[:, None] * self.W_dec
        self.W_dec += change_FD / self.sum_counts_F.clamp_min(1)[:, None]
        return terms

    @classmethod
    def step_numbers(cls, config: Any, shapes: Shapes, rows: int) -> int:
        """Distances twice; or rows in float64 with what they are added up in."""
        rows_BD = rows * shapes.input_width
        return max(2 * rows * shapes.latents + rows_BD, 5 * rows_BD + 2 * shapes.atoms)

    @classmethod
    def summed_numbers(cls, config: Any, shapes: Shapes) -> int:
        return shapes.atoms

    def code_of(self, x_BD: Tensor) -> SparseCode:
        _, nearest_B = nearest(x_BD, self.W_dec)
        offsets = torch.arange(len(x_BD) + 1, device=x_BD.device)
        return SparseCode(x_BD.new_ones(len(x_BD)), Chosen(nearest_B, offsets), self.config.width)
