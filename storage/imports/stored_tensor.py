"""A tensor in a file: its shape at once, its rows when they are requested.

Legend of shapes: N documents, T tokens of a document, D width of a site.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

UNNAMED = ""
"""Name of the tensor of a file that holds one tensor without a name."""


@dataclass(frozen=True)
class TensorFacts:
    """What is known of a tensor without its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    problem: str = ""
    """Why its values cannot be read, and what to change; empty when they can."""

    def rows(self, lead: int) -> int:
        """Rows when the first `lead` dimensions count rows."""
        return math.prod(self.shape[:lead]) if len(self.shape) >= lead else 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    facts: TensorFacts
    cut: Callable[[tuple[slice, ...]], torch.Tensor]
    """The part of the tensor that slices of its first dimensions select."""

    def read(self, start: int, stop: int, lead: int) -> torch.Tensor:
        """Rows from the first number up to the second; with `lead` 2 the rows of (N, T, ...) document by document."""
        if lead == 1:
            return self.cut((slice(start, stop),))
        tokens, rest = self.facts.shape[1], self.facts.shape[2:]
        pieces = [self.cut(box).reshape(-1, *rest) for box in boxes(start, stop, tokens)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


@dataclass(frozen=True)
class OpenedFile:
    """What a file holds."""

    tensors: dict[str, StoredTensor]
    """By name; an item of a list is called `NAME[INDEX]`."""
    notes: dict[str, str] = field(default_factory=dict)
    """Kind of everything else that it holds, by name."""


@dataclass(frozen=True)
class FileFacts:
    """What a file says of its content."""

    tensors: dict[str, TensorFacts]
    notes: dict[str, str]


def facts_of(opened: OpenedFile) -> FileFacts:
    return FileFacts({name: one.facts for name, one in opened.tensors.items()}, opened.notes)


def boxes(start: int, stop: int, tokens: int) -> list[tuple[slice, slice]]:
    """At most three (documents, tokens) boxes that hold the rows from `start` up to `stop` of (N, T), in order."""
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
