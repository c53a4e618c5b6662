"""Assign pieces of a corpus to shards, and order their rows there: pure functions.

Pieces are dealt in a fixed random order, whole, to shards of about `shard_rows` rows, and the rows of a shard are
permuted: rows of one document are spread over all shards and all chunks of a shard, so that any run of chunks is a fair
sample of the corpus. A shard can be made without the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexray.storage.harvest.pieces import TokenPieces
from lexray.storage.order import permutation

_PIECES, _ROWS = 8, 9  # purposes of Philox keys; `lexray.storage.order` has the first ones
_SEED = 0


@dataclass(frozen=True, kw_only=True)
class ImagePieces:
    """Images of a task, sent to a replica."""

    images: list[bytes]
    """Encoded bytes of each image (P)."""
    names: list[str]
    """Name of each image in errors (P)."""
    documents: np.ndarray
    """Number of each image in the corpus (P), int32."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """Input of one shard, apart from model and settings."""

    number: int
    rows: np.ndarray
    """Number of rows taken from the start of each piece (P)."""
    pieces: TokenPieces | ImagePieces


def deal_pieces(rows: np.ndarray, shard_rows: int, *, spread: bool) -> list[np.ndarray]:
    """Return the piece numbers of each shard in order, given the rows of each piece (P); empty pieces are dropped."""
    order = permutation(len(rows), _SEED, _PIECES) if spread else np.arange(len(rows))
    order = order[rows[order] > 0]
    begins = np.cumsum(rows[order]) - rows[order]
    _, firsts = np.unique(begins // shard_rows, return_index=True)
    return np.split(order, firsts[1:])


def row_places(rows: int, number: int, *, spread: bool) -> np.ndarray:
    """Return the position in shard `number` of each of its rows, in the order of its pieces (rows)."""
    if not spread:
        return np.arange(rows)
    places = np.empty(rows, dtype=np.int64)
    places[permutation(rows, _SEED, _ROWS, number)] = np.arange(rows)
    return places


def cut_rows(rows: np.ndarray, max_rows: int | None) -> np.ndarray:
    """Return the rows of each piece after cutting the corpus to its first `max_rows` rows (P)."""
    if max_rows is None:
        return rows
    return np.diff(np.minimum(np.cumsum(rows), max_rows), prepend=0)


def batches(lengths: np.ndarray, batch_tokens: int, *, pads: bool = True) -> list[np.ndarray]:
    """Return batches of piece numbers, of similar length to save padding, longest first.

    Without `pads` only pieces of equal length are batched, so that none is padded.
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
