"""Which rows a stream serves: training, validation or test documents, without special tokens and outlying norms.

Validation and test documents are the two halves of those held out. Training may look at validation documents (to reach
a target L0, to stop early, to choose the next trial); test documents are read once it is over, for what is reported.

Decided from the small per-row columns before the first step, so that counts, and with them the steps of an epoch, are
known and equal everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.manifest import norm_column
from lexray.storage.order import permutation
from lexray.storage.reader import DatasetReader

_HOLD_OUT = 2  # purpose of the Philox key, see lexray.storage.order


HeldOutPart = Literal["validation", "test"]
HeldOutUnit = Literal["rows", "documents"]
Part = Literal["train", "validation", "test", "all"]
OUTSIZED = 8
"""A document of more than one part in so many of the held-out rows is held out only where others do not suffice."""
HELD_OUT_PARTS: tuple[HeldOutPart, ...] = get_args(HeldOutPart)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A choice of rows. Which documents are held out, and which of them are for test, does not depend on the sites."""

    part: Part = "train"
    held_out: float = 0.05
    """Share of the dataset never trained on, in whole documents: half of it for validation, half for test."""
    held_out_of: HeldOutUnit = "rows"
    """Unit of that share. Lengths of documents differ: a tenth of them may have a thirtieth of the rows."""
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
    document_rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """Rows of each document of a held-out part, those left out among them; empty for other parts."""

    @property
    def counts(self) -> np.ndarray:
        """Selected rows of each chunk (num_chunks)."""
        return np.array([int(mask.sum()) for mask in self.masks], dtype=np.int64)


def select_rows(reader: DatasetReader, selection: Selection, sites: Sequence[str]) -> SelectedRows:
    """Apply a selection for a stream of these sites. Raises UserError when no document can be held out."""
    # Views of one value: memory is taken only with the columns, once they were read.
    usual = [_mask_of(True, place.rows) for place in reader.chunks]
    if selection.drop_special and reader.manifest.special_token_ids:
        usual = _without_special(reader, usual)
    special = reader.manifest.rows - _count(usual)
    if selection.max_norm_ratio is not None:
        for site in sites:
            usual = _without_outlying(reader, usual, site, selection.max_norm_ratio)
    outlying = reader.manifest.rows - special - _count(usual)
    masks, document_rows = _of_part(reader, usual, selection)
    return SelectedRows(masks=masks, special=special, outlying=outlying, document_rows=document_rows)


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


def _of_part(
    reader: DatasetReader, masks: list[np.ndarray], selection: Selection
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return the masks of a part, and the rows of each of its documents where it is a held-out one."""
    if selection.part == "all":
        return masks, np.zeros(0, np.int64)
    documents = reader.read_column("document")
    distinct, rows = _document_rows(documents)
    held_out = held_out_documents(distinct, rows, selection)
    is_training = selection.part == "train"
    if is_training:
        chosen = np.concatenate(list(held_out))
    else:
        _check_both_parts(held_out, rows, selection)
        chosen = held_out[HELD_OUT_PARTS.index(selection.part)]
    wanted = _are_in(documents, chosen, not is_training)
    of_part = [_both(mask, here) for mask, here in zip(masks, wanted, strict=True)]
    return of_part, rows[:0] if is_training else rows[np.isin(distinct, chosen)]


def _is_constant(part: np.ndarray) -> bool:
    """Whether an array is a view of one value, as where a chunk is one document of a generated dataset."""
    return part.strides == (0,) and len(part) > 0


@lru_cache(maxsize=64)
def _mask_of(value: bool, rows: int) -> np.ndarray:
    """Return a mask of one value as a view of it, the same array for all chunks."""
    return np.broadcast_to(np.bool_(value), rows)


def _document_rows(parts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct documents, ascending, and the rows of each."""
    found = [
        (part[:1], np.array([len(part)])) if _is_constant(part) else np.unique(part, return_counts=True)
        for part in parts
    ]
    values, counts = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    distinct, index = np.unique(values, return_inverse=True)
    return distinct, np.bincount(index, weights=counts).astype(np.int64)


def _are_in(parts: list[np.ndarray], chosen: np.ndarray, wanted: bool) -> Iterator[np.ndarray]:
    """Yield isin(part, chosen) == wanted for each part; where all are views of one value, as such views."""
    if not all(map(_is_constant, parts)):
        yield from (np.isin(part, chosen) == wanted for part in parts)
        return
    found = np.isin(np.concatenate([part[:1] for part in parts]), chosen) == wanted
    yield from (_mask_of(bool(value), len(part)) for value, part in zip(found, parts, strict=True))


def _both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return one & other, a view of one value where both are."""
    if _is_constant(one) and _is_constant(other):
        return _mask_of(bool(one[0] & other[0]), len(one))
    return one & other


def _count(masks: list[np.ndarray]) -> int:
    return sum(int(mask.sum()) for mask in masks)


class HeldOutDocuments(NamedTuple):
    """Documents that are held out, by part."""

    validation: np.ndarray
    test: np.ndarray


def held_out_documents(documents: np.ndarray, rows: np.ndarray, selection: Selection) -> HeldOutDocuments:
    """Draw the documents that are held out, at least one where the share is above 0, by the selection's seed.

    `rows` are the rows of each document. Raises UserError for a single document.
    """
    share, count = selection.held_out, len(documents)
    if not share:
        return HeldOutDocuments(documents[:0], documents[:0])
    if count < 2:
        raise UserError(f"data.held_out: the dataset has {count} document, which cannot be split; use 2 or more")
    order = permutation(count, selection.seed, _HOLD_OUT)
    if selection.held_out_of == "documents":
        drawn = order[: min(count - 1, max(1, round(share * count)))]
        return HeldOutDocuments(documents[drawn[::2]], documents[drawn[1::2]])
    validation, test = deal_documents(rows[order], share)
    return HeldOutDocuments(documents[order[validation]], documents[order[test]])


def deal_documents(rows: np.ndarray, share: float) -> tuple[list[int], list[int]]:
    """Return the indices of validation and of test documents among two or more of so many rows, in drawn order.

    Documents longer than an eighth of the share are taken where shorter ones do not fill it: a part that one of them
    dominates tells about that one. A document is held out if that brings the held-out rows closer to `share` of all.
    It goes to the part with fewer rows; of equal ones, to validation. A part that is still empty gets the shortest
    document, while one is left to training.
    """
    target, shortest = share * int(rows.sum()), int(rows.min())
    parts: tuple[list[int], list[int]] = ([], [])
    sizes = [0, 0]
    is_taken = np.zeros(len(rows), dtype=bool)
    for longest in (target / OUTSIZED, math.inf):
        for index in np.flatnonzero(~is_taken & (rows <= longest)).tolist():
            missing, size = target - sum(sizes), int(rows[index])
            if 2 * missing <= shortest or len(parts[0]) + len(parts[1]) == len(rows) - 1:
                break
            if size < 2 * missing:
                part = int(sizes[1] < sizes[0])
                parts[part].append(index)
                sizes[part] += size
                is_taken[index] = True
    for index in np.argsort(rows, kind="stable").tolist():
        if all(parts) or len(parts[0]) + len(parts[1]) == len(rows) - 1:
            break
        if index not in parts[0]:
            parts[int(bool(parts[0]))].append(index)
    return parts


def _check_both_parts(held_out: HeldOutDocuments, rows: np.ndarray, selection: Selection) -> None:
    share, documents = selection.held_out, len(rows)
    if not share or len(held_out.test):
        return
    if documents < 3:
        raise UserError(
            f"data.held_out: the dataset has {documents} documents; training, validation and test need one each, "
            "so 3 or more"
        )
    raise UserError(
        f"data.held_out: {share:g} of {documents:,} documents is 1; validation and test need one each, so "
        f"{2 / documents:.2g} or more"
    )
