"""Which pieces of a corpus go into which shard, and in which order their rows lie there: pure functions.

Pieces are dealt in a fixed random order, whole, to shards of about `shard_rows` rows, and the rows of a shard are
permuted: rows of one document lie in all shards and in all chunks of a shard, so that any run of chunks is a fair
sample of the corpus. A shard can be made without the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexray.storage.harvest.image_pieces import ImagePieces
from lexray.storage.harvest.pieces import TokenPieces
from lexray.storage.order import permutation

_PIECES, _ROWS = 8, 9  # what a Philox key is used for; `lexray.storage.order` has the first ones
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """All that a shard is made of, besides model and settings."""

    number: int
    rows: np.ndarray
    """Rows taken of each piece, its first ones (P)."""
    pieces: TokenPieces | ImagePieces


def deal_pieces(rows: np.ndarray, shard_rows: int, *, spread: bool) -> list[np.ndarray]:
    """Per shard the numbers of its pieces in order, from the rows of each piece (P); those without rows go nowhere."""
    order = permutation(len(rows), _SEED, _PIECES) if spread else np.arange(len(rows))
    order = order[rows[order] > 0]
    begins = np.cumsum(rows[order]) - rows[order]
    _, firsts = np.unique(begins // shard_rows, return_index=True)
    return np.split(order, firsts[1:])


def row_places(rows: int, number: int, *, spread: bool) -> np.ndarray:
    """Where in shard `number` each of its rows is stored, in the order of its pieces (rows)."""
    if not spread:
        return np.arange(rows)
    places = np.empty(rows, dtype=np.int64)
    places[permutation(rows, _SEED, _ROWS, number)] = np.arange(rows)
    return places


def cut_rows(rows: np.ndarray, max_rows: int | None) -> np.ndarray:
    """Rows of each piece, so many that there are `max_rows` in all: the first ones of the corpus (P)."""
    if max_rows is None:
        return rows
    return np.diff(np.minimum(np.cumsum(rows), max_rows), prepend=0)


def batches(lengths: np.ndarray, batch_tokens: int, *, pads: bool = True) -> list[np.ndarray]:
    """Pieces that go through the model together, by number: of like length, to save padding, the longest first.

    Without `pads` only pieces of equal length go together, so that none is padded.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    found, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        pieces = order[start : start + max(1, batch_tokens // longest)]
        if not pads:
            pieces = pieces[lengths[pieces] == longest]
        found.append(pieces)
        start += len(pieces)
    return found
