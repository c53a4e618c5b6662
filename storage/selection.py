"""Which rows a stream serves: training or held-out documents, with or without special tokens.

Decided from the small per-row columns before the first step, so that counts, and with them the steps of an epoch, are
known and equal everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from storage.errors import UserError
from storage.order import permutation
from storage.reader import DatasetReader

_HOLD_OUT = 2  # purpose of the Philox key, see storage.order


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A choice of rows. The documents held out depend on the seed and the share alone."""

    part: Literal["train", "held_out", "all"] = "train"
    held_out: float = 0.05
    """Share of documents never seen in training."""
    drop_special: bool = True
    """Leave out rows whose token is special to the model's tokenizer ([CLS], padding...)."""
    seed: int = 0


@dataclass(frozen=True)
class SelectedRows:
    """The outcome: a boolean mask per chunk."""

    masks: list[np.ndarray]

    @property
    def counts(self) -> np.ndarray:
        """Selected rows of each chunk (num_chunks)."""
        return np.array([int(mask.sum()) for mask in self.masks], dtype=np.int64)


def select_rows(reader: DatasetReader, selection: Selection) -> SelectedRows:
    """Apply a selection. Raises UserError when the dataset has too few documents to hold any out."""
    documents = reader.read_column("document")
    masks = [np.ones(len(part), dtype=bool) for part in documents]
    special = reader.manifest.special_token_ids
    if selection.drop_special and special:
        tokens = reader.read_column("token_id")
        masks = [mask & ~np.isin(part, special) for mask, part in zip(masks, tokens, strict=True)]
    if selection.part != "all":
        held_out = held_out_documents(np.unique(np.concatenate(documents)), selection.held_out, selection.seed)
        wanted = selection.part == "held_out"
        masks = [mask & (np.isin(part, held_out) == wanted) for mask, part in zip(masks, documents, strict=True)]
    return SelectedRows(masks)


def held_out_documents(documents: np.ndarray, share: float, seed: int) -> np.ndarray:
    """`share` of the documents (at least one when share > 0), drawn by the seed."""
    if not share:
        return documents[:0]
    if len(documents) < 2:
        raise UserError(
            f"data.held_out: {share} of documents, but the dataset has {len(documents)}; it needs 2 or more"
        )
    count = min(len(documents) - 1, max(1, round(share * len(documents))))
    return documents[permutation(len(documents), seed, _HOLD_OUT)[:count]]
