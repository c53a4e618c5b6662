"""Generate the rows of a chunk, a pure function of the parameters, the row seed and the chunk's number.

Only what can fire is drawn: roots and features outside the trees for every row, and the children of those that fire.
Given the common factors of a row, features fire independently, so this has the distribution of drawing all of them.

Shapes: B rows of a chunk, L leading features (roots and those in no tree), P firing parents, C children of each,
N firing (row, feature) pairs, K common factors and a constant, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from lexray.storage.synthetic.exact import Words, rounded
from lexray.storage.synthetic.features import (
    FACTOR_STEP,
    MAGNITUDE_STEP,
    Features,
    features_of,
    firing_threshold,
)
from lexray.storage.synthetic_url import CHUNK_ROWS, Synthetic

ROWS = "rows"
BLOCK_ROWS = 128
"""Rows whose leading features are drawn at once, so that their arrays stay in a core's cache."""


class Firing(NamedTuple):
    """Firing features of a chunk, sorted by row."""

    rows_N: np.ndarray
    """Row within the chunk, int64."""
    features_N: np.ndarray
    magnitudes_N: np.ndarray
    """Above 0, float32."""


@dataclass(frozen=True)
class RowGenerator:
    """Generates chunks of a dataset; thread-safe."""

    dataset: Synthetic
    purpose: str = ROWS
    """Other purposes draw other rows of the same features, whatever the row seed."""

    @cached_property
    def features(self) -> Features:
        return features_of(self.dataset.parameters)

    def chunk(self, number: int) -> np.ndarray:
        """Return the vectors of a chunk (CHUNK_ROWS, D), float32."""
        return self.vectors(self.firing(number))

    def vectors(self, firing: Firing) -> np.ndarray:
        """Return bias + sum of magnitude times direction (B, D), float32; exact, in whichever order it is summed."""
        begins = torch.from_numpy(np.searchsorted(firing.rows_N, np.arange(CHUNK_ROWS)))
        x_BD = torch.nn.functional.embedding_bag(
            torch.from_numpy(firing.features_N),
            self._directions_GD,
            begins,
            mode="sum",
            per_sample_weights=torch.from_numpy(firing.magnitudes_N),
        )
        return x_BD.add_(self._bias_D).numpy()

    def firing(self, number: int) -> Firing:
        """Return which features fire in a chunk, and how strongly."""
        entropy = self.dataset.entropy(self.purpose, of_rows=self.purpose == ROWS)
        words = Words([*entropy, number & 0xFFFFFFFF, number >> 32])
        rank = self.dataset.parameters.correlation_rank
        factors_BK = np.ones((CHUNK_ROWS, rank + 1), np.float32)
        factors_BK[:, :rank] = rounded(words.normal(CHUNK_ROWS, rank), FACTOR_STEP)
        level = self._with_magnitudes(words, *self._leading(words, factors_BK))
        found = [level]
        for _ in range(self.dataset.parameters.depth):
            level = self._children(words, factors_BK, level)
            found.append(level)
        rows_N, features_N, magnitudes_N = (np.concatenate(parts) for parts in zip(*found, strict=True))
        order = np.argsort(rows_N.astype(np.uint16), kind="stable")
        return Firing(rows_N[order], features_N[order], magnitudes_N[order])

    def _leading(self, words: Words, factors_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Draw the leading features: rows and features that fire.

        The high halves of words decide nearly always; the low ones are drawn where the high ones are equal or below.
        """
        thresholds, number = firing_threshold(), len(self._leading_L)
        high = (thresholds >> 16).astype(np.uint16)
        rows, features = [], []
        for begin in range(0, len(factors_BK), BLOCK_ROWS):
            bins_BL = (factors_BK[begin : begin + BLOCK_ROWS] @ self._leading_KL).astype(np.int16)
            drawn_BL = words.uint16(*bins_BL.shape)
            places = np.flatnonzero(drawn_BL <= high.take(bins_BL, mode="clip"))
            drawn = (drawn_BL.ravel()[places].astype(np.uint32) << 16) | words.uint16(len(places))
            places = places[drawn < thresholds.take(bins_BL.ravel()[places], mode="clip")]
            rows.append(begin + places // number)
            features.append(self._leading_L[places % number])
        return np.concatenate(rows), np.concatenate(features)

    def _children(self, words: Words, factors_BK: np.ndarray, parents: Firing) -> Firing:
        """Draw the children of firing features; of several children of one that fire, a random one is kept."""
        first_P = self.features.first_child_G[parents.features_N]
        rows_P, first_P = parents.rows_N[first_P >= 0], first_P[first_P >= 0]
        children_PC = first_P[:, None] + np.arange(self.dataset.parameters.branching)
        bins_PC = np.einsum("pk,pck->pc", factors_BK[rows_P], self._argument_GK[children_PC]).astype(np.int64)
        fires_PC = words.uint32(*children_PC.shape) < firing_threshold().take(bins_PC, mode="clip")
        magnitudes_PC = np.zeros(children_PC.shape, np.float32)
        magnitudes_PC[fires_PC] = self._magnitudes(words, children_PC[fires_PC])
        lots_PC = np.where(magnitudes_PC > 0, words.uint32(*children_PC.shape) | np.uint32(1), np.uint32(0))
        kept_P = lots_PC.argmax(1)
        parents_P = np.arange(len(kept_P))
        fired_P = lots_PC[parents_P, kept_P] > 0
        kept = (parents_P[fired_P], kept_P[fired_P])
        return Firing(rows_P[fired_P], children_PC[kept], magnitudes_PC[kept])

    def _with_magnitudes(self, words: Words, rows: np.ndarray, features: np.ndarray) -> Firing:
        magnitudes = self._magnitudes(words, features)
        fires = magnitudes > 0
        return Firing(rows[fires], features[fires], magnitudes[fires])

    def _magnitudes(self, words: Words, features: np.ndarray) -> np.ndarray:
        drawn = self.features.means_G[features] + self.features.spreads_G[features] * words.normal(len(features))
        return rounded(drawn, MAGNITUDE_STEP).clip(min=0).astype(np.float32)

    @cached_property
    def _leading_L(self) -> np.ndarray:
        return np.flatnonzero(self.features.parents_G < 0)

    @cached_property
    def _leading_KL(self) -> np.ndarray:
        return np.ascontiguousarray(self.features.argument_KG[:, self._leading_L])

    @cached_property
    def _argument_GK(self) -> np.ndarray:
        return np.ascontiguousarray(self.features.argument_KG.T)

    @cached_property
    def _directions_GD(self) -> torch.Tensor:
        return torch.from_numpy(self.features.directions_GD.copy())

    @cached_property
    def _bias_D(self) -> torch.Tensor:
        return torch.from_numpy(self.features.bias_D.copy())
