"""Which rows a stream serves: training, validation or test documents, without special tokens and outlying norms.

Validation and test documents are the two halves of those held out. Training may look at validation documents (to reach
a target L0, to stop early, to choose the next trial); test documents are read once it is over, for what is reported.

Decided from the small per-row columns before the first step, so that counts, and with them the steps of an epoch, are
known and equal everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.manifest import norm_column
from lexray.storage.order import permutation
from lexray.storage.reader import DatasetReader

_HOLD_OUT = 2  # purpose of the Philox key, see lexray.storage.order


HeldOutPart = Literal["validation", "test"]
Part = Literal["train", "validation", "test", "all"]
HELD_OUT_PARTS: tuple[HeldOutPart, ...] = get_args(HeldOutPart)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A choice of rows. The documents held out, and which of them are for test, depend on seed and share alone."""

    part: Part = "train"
    held_out: float = 0.05
    """Share of documents never trained on: half of them for validation, half for test."""
    drop_special: bool = True
    """Leave out rows whose token is special to the model's tokenizer ([CLS], padding...)."""
    max_norm_ratio: float | None = 10.0
    """Leave out rows whose norm, at a site that is read, is above so many times the site's median; None keeps them.

    A few tokens of most language models have vectors of hundreds of times the usual norm, which no dictionary should
    spend latents on.
    """
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SelectedRows:
    """The outcome: a boolean mask per chunk, and why rows of the dataset were left out of every part."""

    masks: list[np.ndarray]
    special: int = 0
    """Rows with special tokens."""
    outlying: int = 0
    """Further rows of outlying norm."""

    @property
    def counts(self) -> np.ndarray:
        """Selected rows of each chunk (num_chunks)."""
        return np.array([int(mask.sum()) for mask in self.masks], dtype=np.int64)


def select_rows(reader: DatasetReader, selection: Selection, sites: Sequence[str]) -> SelectedRows:
    """Apply a selection for a stream of these sites. Raises UserError when no document can be held out."""
    # Views of one value: memory is taken only with the columns, once they were read.
    usual = [np.broadcast_to(np.True_, place.rows) for place in reader.chunks]
    if selection.drop_special and reader.manifest.special_token_ids:
        usual = _without_special(reader, usual)
    special = reader.manifest.rows - _count(usual)
    if selection.max_norm_ratio is not None:
        for site in sites:
            usual = _without_outlying(reader, usual, site, selection.max_norm_ratio)
    outlying = reader.manifest.rows - special - _count(usual)
    return SelectedRows(masks=_of_part(reader, usual, selection), special=special, outlying=outlying)


def _without_special(reader: DatasetReader, masks: list[np.ndarray]) -> list[np.ndarray]:
    tokens = reader.column_parts("token_id")
    special = reader.manifest.special_token_ids
    return [mask & ~np.isin(part, special) for mask, part in zip(masks, tokens, strict=True)]


def _without_outlying(reader: DatasetReader, masks: list[np.ndarray], site: str, ratio: float) -> list[np.ndarray]:
    quantiles = reader.manifest.site(site).norm_quantiles
    limit = ratio * quantiles["0.5"]
    if not 0 < limit < quantiles["1"]:  # the norms need not be read to know that all stay
        return masks
    norms = reader.column_parts(norm_column(site))
    return [mask & (part <= limit) for mask, part in zip(masks, norms, strict=True)]


def _of_part(reader: DatasetReader, masks: list[np.ndarray], selection: Selection) -> list[np.ndarray]:
    if selection.part == "all":
        return masks
    documents = reader.read_column("document")
    distinct = np.unique(np.concatenate(documents))
    chosen = held_out_documents(distinct, selection.held_out, selection.seed)
    is_training = selection.part == "train"
    if not is_training:
        _check_both_parts(len(chosen), len(distinct), selection.held_out)
        chosen = part_of(chosen, selection.part)
    return [mask & (np.isin(part, chosen) != is_training) for mask, part in zip(masks, documents, strict=True)]


def _count(masks: list[np.ndarray]) -> int:
    return sum(int(mask.sum()) for mask in masks)


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


def part_of(held_out: np.ndarray, part: str) -> np.ndarray:
    """Return the validation or the test documents among those held out, in the order in which they were drawn.

    Every other one is for test, so a larger share only adds documents to each part.
    """
    return held_out[HELD_OUT_PARTS.index(part) :: 2]


def _check_both_parts(held_out: int, documents: int, share: float) -> None:
    if not share or held_out > 1:
        return
    if documents < 3:
        raise UserError(
            f"data.held_out: the dataset has {documents} documents; training, validation and test need one each, "
            "so 3 or more"
        )
    raise UserError(
        f"data.held_out: {share:g} of {documents:,} documents is {held_out}; validation and test need one each, so "
        f"{2 / documents:.2g} or more"
    )
