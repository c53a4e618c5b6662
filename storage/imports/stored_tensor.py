"""A tensor in a file: shape known at once, rows read on request.

Legend of shapes: N documents, T tokens of a document, D width of a site.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

UNNAMED = ""
"""Name of the only, unnamed tensor of a file."""


@dataclass(frozen=True)
class TensorFacts:
    """Facts about a tensor that do not need its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    problem: str = ""
    """Reason why its values cannot be read, and what to change; empty when they can."""

    def rows(self, lead: int) -> int:
        """Return the number of rows when the first `lead` dimensions count rows."""
        return math.prod(self.shape[:lead]) if len(self.shape) >= lead else 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    facts: TensorFacts
    cut: Callable[[tuple[slice, ...]], torch.Tensor]
    """Returns the part of the tensor selected by slices of its first dimensions."""

    def read(self, start: int, stop: int, lead: int) -> torch.Tensor:
        """Read rows `start` to `stop`; with `lead` 2 the rows of (N, T, ...) document by document."""
        if lead == 1:
            return self.cut((slice(start, stop),))
        tokens, rest = self.facts.shape[1], self.facts.shape[2:]
        pieces = [self.cut(box).reshape(-1, *rest) for box in boxes(start, stop, tokens)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@dataclass(frozen=True)
class OpenedFile:
    """Content of an opened file."""

    tensors: dict[str, StoredTensor]
    """Tensors by name; an item of a list is named `NAME[INDEX]`."""
    notes: dict[str, str] = field(default_factory=dict)
    """Kinds of other objects in the file, by name."""


@dataclass(frozen=True)
class FileFacts:
    """Facts about the content of a file."""

    tensors: dict[str, TensorFacts]
    notes: dict[str, str]


def facts_of(opened: OpenedFile) -> FileFacts:
    return FileFacts({name: one.facts for name, one in opened.tensors.items()}, opened.notes)


def boxes(start: int, stop: int, tokens: int) -> list[tuple[slice, slice]]:
    """Return at most three (documents, tokens) boxes that cover rows `start` to `stop` of (N, T), in order."""
    (first, begin), (last, end) = divmod(start, tokens), divmod(stop, tokens)
    if first == last:
        return [(slice(first, first + 1), slice(begin, end))]
    found = []
    if begin:
        found.append((slice(first, first + 1), slice(begin, tokens)))
        first += 1
    if first < last:
        found.append((slice(first, last), slice(0, tokens)))
    if end:
        found.append((slice(last, last + 1), slice(0, end)))
    return found
