"""Documents and positions of rows, made up where a source does not name them.

Legend of shapes: B rows of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from itertools import pairwise

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.imports.rows import UNKNOWN_TOKEN

COLUMN_NAMES = {
    "token_id": "token_id",
    "token_ids": "token_id",
    "input_ids": "token_id",
    "position": "position",
    "document": "document",
    "lengths": "lengths",
    "mask": "mask",
    "attention_mask": "mask",
}
"""Names in a source that mean a column of integers, not a site."""
FILTERS = ("lengths", "mask")
"""Columns that say which rows of a document are none: tokens of each document, or 1 and 0 for each row."""
DOCUMENT_ROWS = 256
"""Rows of a made-up document where files are few."""
MANY_FILES = 20
"""From this number of files on, each counts as a document: then a share of 5 % is at least one."""


def column_names(found: Collection[str], place: str) -> dict[str, str]:
    """Name in the source of each column; a name may be nested. Raises UserError when two names mean one column."""
    columns: dict[str, str] = {}
    for name in found:
        column = COLUMN_NAMES.get(name.replace("/", ".").rsplit(".", 1)[-1])
        if column in columns:
            raise UserError(f"{place}: {columns[column]} and {name} both hold {column}; keep one")
        if column is not None:
            columns[column] = name
    return columns


def check_columns(columns: Collection[str], place: str, *, documents_known: bool) -> None:
    """Raise UserError unless the columns of a source determine documents and positions."""
    if "position" in columns and "document" not in columns and not documents_known:
        raise UserError(
            f"{place}: a column position without document, but positions count inside documents; "
            "add a column document or leave position out"
        )
    if all(name in columns for name in FILTERS):
        raise UserError(f"{place}: both {' and '.join(FILTERS)} say which rows to keep; leave one out")
    if "lengths" in columns and not documents_known:
        raise UserError(
            f"{place}: a column lengths, but the rows are not laid out as documents x tokens x width; leave it out"
        )


def made_up_starts(file_starts: np.ndarray, document_rows: int | None) -> tuple[np.ndarray, str]:
    """First row of each made-up document, and the rule in words; no document crosses a file.

    `file_starts` holds the first row of each file and the row after the last.
    """
    files = len(file_starts) - 1
    if document_rows is None and files >= MANY_FILES:
        return np.unique(file_starts[:-1]), f"one for each of {files} files"
    step = document_rows or DOCUMENT_ROWS
    pieces = [np.arange(start, stop, step) for start, stop in pairwise(file_starts)]
    return np.concatenate(pieces), f"of {step} rows each, a new one with each file"


def made_up_columns(document_starts: np.ndarray, start: int, stop: int) -> dict[str, np.ndarray]:
    """All columns of the rows from `start` up to `stop`, given the first row of each document."""
    rows = np.arange(start, stop)
    document = np.searchsorted(document_starts, rows, side="right") - 1
    position = rows - document_starts[document]
    return {"token_id": np.full(len(rows), UNKNOWN_TOKEN), "position": position, "document": document}


def kept_by_mask(mask: np.ndarray, place: Callable[[int], str]) -> np.ndarray:
    """Which rows a mask of 0 and 1 keeps (B), bool. Raises UserError, with the place of the row, for other values."""
    bad = np.flatnonzero((mask != 0) & (mask != 1))
    if len(bad):
        raise UserError(f"{place(int(bad[0]))}: a mask of {mask[bad[0]]}, expected 0 or 1; correct the mask")
    return mask.astype(bool)


def check_lengths(lengths: np.ndarray, stored: np.ndarray, place: Callable[[int], str]) -> None:
    """Raise UserError for the first document whose length is negative or above the rows stored for it."""
    bad = np.flatnonzero((lengths < 0) | (lengths > stored))
    if len(bad):
        raise UserError(
            f"{place(int(bad[0]))}: a length of {lengths[bad[0]]}, but {stored[bad[0]]} rows are stored; "
            "correct the lengths"
        )


class PositionCounter:
    """Counts positions inside documents that are given row by row, over blocks."""

    def __init__(self) -> None:
        self._document: int | None = None
        self._next = 0

    def __call__(self, document: np.ndarray) -> np.ndarray:
        """(B) numbers of documents as (B) positions: 0 wherever the number changes."""
        if not len(document):
            return np.zeros(0, np.int64)
        rows = np.arange(len(document))
        begins = np.concatenate([[document[0] != self._document], document[1:] != document[:-1]])
        last_begin = np.maximum.accumulate(np.where(begins, rows, -1))
        positions = np.where(last_begin < 0, self._next + rows, rows - last_begin)
        self._document, self._next = int(document[-1]), int(positions[-1]) + 1
        return positions
