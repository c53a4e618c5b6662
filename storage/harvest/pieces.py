"""Documents as pieces of tokens, in flat arrays: four bytes a token, whatever the number of pieces.

Legend of shapes: N tokens in all, P pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import Context

_DOCUMENTS_PER_CALL = 64  # A tokenizer works on the documents of one call in parallel.


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Pieces of text in the frame of special tokens that the model expects."""

    token_ids: np.ndarray
    """All pieces end to end, special tokens included (N), int32."""
    ends: np.ndarray
    """Where each piece ends in `token_ids` (P), int64."""
    document_starts: np.ndarray
    """Where each document that has tokens begins in `token_ids`, int64."""
    document_numbers: np.ndarray
    """Numbers of those documents, int32."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece (P)."""
        return np.diff(self.ends, prepend=0)

    def select(self, numbers: np.ndarray) -> TokenPieces:
        """The pieces of these numbers, in the order given."""
        spans = [(int(self.ends[n - 1]) if n else 0, int(self.ends[n])) for n in numbers]
        places = np.concatenate([np.arange(start, end) for start, end in spans])
        documents = self.document_numbers[np.searchsorted(self.document_starts, places, side="right") - 1]
        lengths = np.array([end - start for start, end in spans], dtype=np.int32)
        return TokenPieces(token_ids=self.token_ids[places], lengths=lengths, documents=documents)


@dataclass(frozen=True, kw_only=True)
class TokenPieces:
    """A few pieces with all that a model and its rows need; small, to be sent to who runs the model."""

    token_ids: np.ndarray
    """End to end (N), int32."""
    lengths: np.ndarray
    """Tokens of each piece (P)."""
    documents: np.ndarray
    """Document of each token (N), int32."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The token ids of the pieces of these numbers (T each)."""
        ends = np.cumsum(self.lengths)
        return [self.token_ids[ends[n] - self.lengths[n] : ends[n]] for n in numbers]


@dataclass(kw_only=True)
class PiecesBuilder:
    """Collects pieces."""

    _ids: array[int] = field(default_factory=lambda: array("i"))
    _ends: array[int] = field(default_factory=lambda: array("q"))
    _document_starts: array[int] = field(default_factory=lambda: array("q"))
    _document_numbers: array[int] = field(default_factory=lambda: array("i"))

    def add(self, piece: Piece) -> None:
        start = len(self._ids)
        self._ids.extend(piece.token_ids)
        self._ends.append(len(self._ids))
        for offset, number in piece.documents:
            if not self._document_numbers or self._document_numbers[-1] != number:
                self._document_starts.append(start + offset)
                self._document_numbers.append(number)

    def build(self) -> Pieces:
        return Pieces(
            token_ids=np.frombuffer(self._ids, dtype=np.int32),
            ends=np.frombuffer(self._ends, dtype=np.int64),
            document_starts=np.frombuffer(self._document_starts, dtype=np.int64),
            document_numbers=np.frombuffer(self._document_numbers, dtype=np.int32),
        )


@dataclass(frozen=True)
class Piece:
    """At most `context_length` tokens in the frame that the model expects."""

    token_ids: list[int]
    documents: list[tuple[int, int]]
    """Offset in the piece at which the tokens of a document begin, and its number; the first offset is 0."""


@dataclass(kw_only=True)
class PieceCutter:
    """Cuts documents into pieces, each in the special tokens that the tokenizer puts around a text."""

    tokenizer: Any
    context_length: int
    """Tokens of a piece, special ones included."""
    context: Context
    _frame: tuple[list[int], list[int]] | None = None

    def cut(self, documents: Iterable[str]) -> Iterator[Piece]:
        """Pieces in the order of the documents. Raises UserError when `context_length` leaves no room for text."""
        encoded = self._encode_all(documents)
        return self._pack(encoded) if self.context == "pack" else self._split(encoded)

    def _split(self, documents: Iterable[tuple[int, list[int]]]) -> Iterator[Piece]:
        """Every token once, as pieces of `context_length` tokens, the last of a document shorter; or the first only."""
        for number, ids in documents:
            prefix, suffix, room = self._room
            for start in range(0, len(ids), room):
                yield Piece(prefix + ids[start : start + room] + suffix, [(0, number)])
                if self.context == "truncate":
                    break

    def _pack(self, documents: Iterable[tuple[int, list[int]]]) -> Iterator[Piece]:
        """Documents one after the other with a separator behind each, cut where a piece is full."""
        separator = self._separator()
        ids: list[int] = []
        owners: list[tuple[int, int]] = []
        for number, document in documents:
            prefix, suffix, room = self._room
            owners.append((len(ids), number))
            ids += [*document, separator]
            taken = 0
            while len(ids) - taken > room:  # the last separator of all is not needed
                yield _packed(ids[taken : taken + room], owners, prefix, suffix)
                taken += room
                owners = _owners_after(owners, room)
            del ids[:taken]
        if len(ids) > 1:
            prefix, suffix, _ = self._room
            yield _packed(ids[:-1], owners, prefix, suffix)

    def _separator(self) -> int:
        for role in ("eos", "sep"):
            found = getattr(self.tokenizer, f"{role}_token_id", None)
            if found is not None:
                return int(found)
        raise UserError(
            "context: pack needs an end or separator token, and the model's tokenizer has neither; use split"
        )

    @property
    def _room(self) -> tuple[list[int], list[int], int]:
        """Special tokens before and after a piece, and how many tokens of text it holds."""
        assert self._frame is not None
        prefix, suffix = self._frame
        room = self.context_length - len(prefix) - len(suffix)
        if room < 1:
            raise UserError(
                f"context_length: {self.context_length} leaves no room for text beside "
                f"{len(prefix) + len(suffix)} special tokens"
            )
        return prefix, suffix, room

    def _encode_all(self, documents: Iterable[str]) -> Iterator[tuple[int, list[int]]]:
        """Number and bare token ids of each document that has any."""
        stream, first = iter(documents), 0
        while texts := list(islice(stream, _DOCUMENTS_PER_CALL)):
            for index, ids in enumerate(encode(self.tokenizer, texts)):
                if not ids:
                    continue
                if self._frame is None:
                    self._frame = special_frame(ids, encode(self.tokenizer, [texts[index]], add_special_tokens=True)[0])
                yield first + index, ids
            first += len(texts)


def _packed(ids: list[int], owners: list[tuple[int, int]], prefix: list[int], suffix: list[int]) -> Piece:
    """A piece of `ids`; special tokens in front belong to its first document."""
    inside = [(offset, number) for offset, number in owners if offset < len(ids)]
    shifted = [(offset + len(prefix) if offset else 0, number) for offset, number in inside]
    return Piece(prefix + ids + suffix, shifted)


def _owners_after(owners: list[tuple[int, int]], removed: int) -> list[tuple[int, int]]:
    """The documents of what is left after the first `removed` tokens are gone."""
    running = [number for offset, number in owners if offset <= removed][-1:]
    return [(0, number) for number in running] + [(o - removed, n) for o, n in owners if o > removed]


def special_frame(bare: list[int], framed: list[int]) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text, from its ids without and with them. Raises UserError."""
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise UserError("model: its tokenizer changes a text's tokens when special tokens are added; lexray cannot cut it")


def encode(tokenizer: Any, texts: list[str], *, add_special_tokens: bool = False) -> list[list[int]]:
    """Token ids of each text."""
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
