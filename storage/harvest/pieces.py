"""Cut documents into pieces of tokens, in flat arrays: four bytes a token, whatever the number of pieces.

Legend of shapes: N tokens in all, P pieces.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.harvest.frame import Frame, encode
from lexray.storage.harvest.harvest_file import Context

_DOCUMENTS_PER_CALL = 64  # A tokenizer processes the documents of one call in parallel.
_CHARACTERS_PER_CALL = 1 << 26  # Its memory is many times that of the text.


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """Pieces of text in the frame of special tokens that the model expects."""

    token_ids: np.ndarray
    """All pieces concatenated, special tokens included (N), int32."""
    ends: np.ndarray
    """End of each piece in `token_ids` (P), int64."""
    document_starts: np.ndarray
    """Start in `token_ids` of each document that has tokens, int64."""
    document_numbers: np.ndarray
    """Numbers of those documents, int32."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each piece (P)."""
        return np.diff(self.ends, prepend=0)

    def select(self, numbers: np.ndarray) -> TokenPieces:
        """Return the pieces of these numbers, in the order given."""
        spans = [(int(self.ends[n - 1]) if n else 0, int(self.ends[n])) for n in numbers]
        places = np.concatenate([np.arange(start, end) for start, end in spans])
        documents = self.document_numbers[np.searchsorted(self.document_starts, places, side="right") - 1]
        lengths = np.array([end - start for start, end in spans], dtype=np.int32)
        return TokenPieces(token_ids=self.token_ids[places], lengths=lengths, documents=documents)


@dataclass(frozen=True, kw_only=True)
class TokenPieces:
    """Pieces of a task with all that a model and its rows need, sent to a replica."""

    token_ids: np.ndarray
    """Token ids of all pieces, concatenated (N), int32."""
    lengths: np.ndarray
    """Tokens of each piece (P)."""
    documents: np.ndarray
    """Document of each token (N), int32."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, numbers: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of the pieces of these numbers (T each)."""
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
    """Cuts documents into pieces, each in the special tokens that the tokenizer puts around a text.

    Where the text contains those special tokens itself (as chat templates do), they are not added again.
    """

    tokenizer: Any
    context_length: int
    """Tokens of a piece, special ones included."""
    context: Context
    own_frames: int = 0
    """Count of texts so far that contain special tokens where the tokenizer adds them."""
    shared_separators: int = 0
    """Count of pieces so far that were cut where a document separator replaces such a token."""
    _frame: Frame | None = None
    _joint: int | None = None

    def cut(self, documents: Iterable[str]) -> Iterator[Piece]:
        """Yield pieces in order of the documents. Raises UserError when `context_length` leaves no room for text."""
        encoded = self._encode_all(documents)
        return self._pack(encoded) if self.context == "pack" else self._split(encoded)

    def _split(self, documents: Iterable[tuple[int, list[int]]]) -> Iterator[Piece]:
        """Yield consecutive pieces of up to `context_length` tokens of each document; or only the first."""
        for number, ids in documents:
            frame, room = self._room
            end = len(ids) - frame.repeats_at_end(ids, 0, len(ids))
            self.own_frames += end < len(ids)
            taken = 0
            while taken < end:
                first = taken + frame.repeats_at_start(ids, taken, end)
                stop = min(first + room, end)
                text = self._text(ids, taken, first, stop)
                taken = stop
                if text:
                    yield Piece(frame.around(text), [(0, number)])
                    if self.context == "truncate":
                        break

    def _pack(self, documents: Iterable[tuple[int, list[int]]]) -> Iterator[Piece]:
        """Yield pieces of the concatenated documents, each followed by a separator."""
        self._joint = separator = self._separator()
        ids: list[int] = []
        owners: list[tuple[int, int]] = []
        is_first = True
        for number, document in documents:
            frame, room = self._room
            bare = _without(document, separator, is_first=is_first)
            self.own_frames += len(bare) < len(document)
            if not bare:
                continue
            is_first = False
            owners.append((len(ids), number))
            ids += [*bare, separator]
            taken, first = 0, frame.repeats_at_start(ids, 0, len(ids))
            while len(ids) - first > room:  # the last separator is not needed
                yield from self._packed(ids, owners, taken, first, first + room)
                taken = first + room
                first = taken + frame.repeats_at_start(ids, taken, len(ids))
            owners = _owners_after(owners, taken)
            del ids[:taken]
        if len(ids) > 1:
            frame, _ = self._room
            first = frame.repeats_at_start(ids, 0, len(ids) - 1)
            yield from self._packed(ids, owners, 0, first, len(ids) - 1)

    def _packed(
        self, ids: list[int], owners: list[tuple[int, int]], taken: int, first: int, stop: int
    ) -> Iterator[Piece]:
        """Yield the piece of `ids[first:stop]`, if any; special tokens at its start belong to its first document."""
        text = self._text(ids, taken, first, stop)
        if text:
            frame, _ = self._room
            inside = [(offset, number) for offset, number in _owners_after(owners, first) if offset < len(text)]
            shifted = [(offset + len(frame.prefix) if offset else 0, number) for offset, number in inside]
            yield Piece(frame.around(text), shifted)

    def _text(self, ids: list[int], taken: int, first: int, stop: int) -> list[int]:
        """Return `ids[first:stop]` without the tokens of the frame's suffix; `ids[taken:first]` are in its prefix."""
        frame, _ = self._room
        last = stop - frame.repeats_at_end(ids, first, stop)
        repeated = ids[taken:first] + ids[last:stop]
        self.own_frames += any(token != self._joint for token in repeated)
        self.shared_separators += self._joint in repeated
        return ids[first:last]

    def _separator(self) -> int:
        for role in ("eos", "sep"):
            found = getattr(self.tokenizer, f"{role}_token_id", None)
            if found is not None:
                return int(found)
        raise UserError(
            "context: pack needs an end or separator token, and the model's tokenizer has neither; use split"
        )

    @property
    def _room(self) -> tuple[Frame, int]:
        """Return the special tokens around a piece, and the number of text tokens that it holds."""
        assert self._frame is not None
        special = len(self._frame.around([]))
        room = self.context_length - special
        if room < 1:
            raise UserError(
                f"context_length: {self.context_length} leaves no room for text beside {special} special tokens"
            )
        return self._frame, room

    def _encode_all(self, documents: Iterable[str]) -> Iterator[tuple[int, list[int]]]:
        """Yield number and bare token ids of each document that has any."""
        first = 0
        for texts in _calls(documents):
            for index, ids in enumerate(encode(self.tokenizer, texts)):
                if not ids:
                    continue
                if self._frame is None:
                    self._frame = Frame.find(self.tokenizer, texts[index], ids)
                yield first + index, ids
            first += len(texts)


def _without(ids: list[int], separator: int, *, is_first: bool) -> list[int]:
    """Strip a document's own separators at its end, and at its start where a separator precedes it."""
    start, end = 0, len(ids)
    while end and ids[end - 1] == separator:
        end -= 1
    while not is_first and start < end and ids[start] == separator:
        start += 1
    return ids[start:end]


def _calls(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yield the documents in lists, one per tokenizer call."""
    texts: list[str] = []
    characters = 0
    for document in documents:
        texts.append(document)
        characters += len(document)
        if len(texts) == _DOCUMENTS_PER_CALL or characters >= _CHARACTERS_PER_CALL:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


def _owners_after(owners: list[tuple[int, int]], removed: int) -> list[tuple[int, int]]:
    """Return the documents of the tokens that remain after removing the first `removed`."""
    running = [number for offset, number in owners if offset <= removed][-1:]
    return [(0, number) for number in running] + [(o - removed, n) for o, n in owners if o > removed]
