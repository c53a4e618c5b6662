"""Choose pairs of a B x F matrix without making another matrix of that size: rows are looked at a few at a time.

Shapes: B rows, F latents, U some of the latents, N chosen (row, latent) pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lexray.training.mesh.axes import Chosen, FeatureAxis

Score = Callable[[Tensor, Tensor | slice], Tensor]
"""Ranks pre-activations (b, U) of some latents, which the second argument indexes among all; positive is eligible."""

ALL = slice(None)
CHUNK_ENTRIES = 2**20
"""Entries of the matrix that are looked at at once."""


def row_chunks(matrix_BF: Tensor) -> Iterator[Tensor]:
    """Views of consecutive rows, about `CHUNK_ENTRIES` entries each."""
    yield from matrix_BF.split(max(1, CHUNK_ENTRIES // max(1, matrix_BF.shape[1])))


def topk(z_BF: Tensor, k: int, latents: FeatureAxis, score: Score | None = None) -> Chosen:
    """The k best of every row by `score` (of a few rows at a time, (b, F)); by the entries themselves without it."""
    if score is None:
        return latents.topk(z_BF, k)
    return joined([latents.topk(score(chunk, ALL), k) for chunk in row_chunks(z_BF)])


def topk_among(z_BF: Tensor, among_U: Tensor, k: int, latents: FeatureAxis, score: Score) -> Chosen:
    """The k best of every row among some latents (their indices, U), as indices of all latents."""
    chosen = joined([latents.topk(score(chunk[:, among_U], among_U), k) for chunk in row_chunks(z_BF)])
    return Chosen(among_U[chosen.latents], chosen.offsets)


def pairs_above(z_BF: Tensor, threshold: Tensor, score: Score, *, inclusive: bool = False) -> Chosen:
    """The pairs whose score is positive and above the threshold, a scalar or (F); `inclusive` takes equal ones too."""
    parts = []
    for chunk in row_chunks(z_BF):
        scores = score(chunk, ALL)
        mask = (scores >= threshold) if inclusive else (scores > threshold)
        mask &= scores > 0
        parts.append(from_counts(mask.nonzero()[:, 1], mask.sum(1)))
    return joined(parts)


def scores_above(z_BF: Tensor, threshold: Tensor | float, score: Score) -> Tensor:
    """The scores above a threshold, row after row (N)."""
    parts = []
    for chunk in row_chunks(z_BF):
        scores = score(chunk, ALL)
        parts.append(scores[scores > threshold])
    return torch.cat(parts)


def joined(parts: list[Chosen]) -> Chosen:
    """Choices of consecutive rows as one."""
    counts = torch.cat([part.offsets.diff() for part in parts])
    return from_counts(torch.cat([part.latents for part in parts]), counts)


def from_counts(latents: Tensor, counts: Tensor) -> Chosen:
    """Chosen latents row after row, given how many each row has."""
    return Chosen(latents, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def subset(chosen: Chosen, keep_N: Tensor) -> Chosen:
    """Those of the chosen pairs at which the mask is set."""
    kept = torch.cat([keep_N.new_zeros(1, dtype=torch.int64), keep_N.cumsum(0)])[chosen.offsets]
    return Chosen(chosen.latents[keep_N], kept)
