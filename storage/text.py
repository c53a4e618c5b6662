"""Text at the entry of a harvest: documents from their source, and documents cut into pieces of tokens.

Documents are read one after the other, never held all at once. Legend of shapes: T tokens of a piece.
"""

from __future__ import annotations

import glob
import hashlib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import UserError
from storage.harvest_file import TextChoice

_DOCUMENTS_PER_CALL = 64  # A tokenizer works on the documents of one call in parallel.


@dataclass(frozen=True)
class TextFacts:
    """What identifies a text: equal facts are equal documents in the same order."""

    documents: int
    characters: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Piece:
    """At most `context_length` consecutive tokens of one document, in the frame the model expects."""

    token_ids: np.ndarray
    """(T) int32, special tokens included."""
    document: int


def read_documents(text: TextChoice) -> Iterator[str]:
    """The documents in their fixed order. Raises UserError naming the module or file that cannot be read."""
    if text.python is not None:
        yield from _documents_of_module(text.python)
        return
    assert text.files is not None
    paths = sorted(p for p in glob.glob(str(Path(text.files).expanduser()), recursive=True) if Path(p).is_file())
    if not paths:
        raise UserError(f"text.files: no file matches {text.files!r}")
    for path in paths:
        try:
            yield Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"text.files: {path} is not UTF-8 text (byte {error.start})") from error
        except OSError as error:
            raise UserError(f"text.files: {path} cannot be read ({error.strerror})") from error


def _documents_of_module(place: str) -> list[str]:
    module_name, attribute = place.split(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise UserError(f"text.python: cannot import {module_name!r} ({error})") from error
    except AttributeError as error:
        raise UserError(f"text.python: module {module_name!r} has no {attribute!r}") from error
    documents = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(documents, list | tuple):
        raise UserError(f"text.python: {place} is a {type(found).__name__}, expected a list or dict of strings")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise UserError(f"text.python: {place} entry {index} is a {type(document).__name__}, expected a string")
    return list(documents)


def measure(documents: Iterable[str]) -> TextFacts:
    """Count and hash the documents. Raises UserError when they hold no character."""
    digest, num_documents, num_characters = hashlib.sha256(), 0, 0
    for document in documents:
        data = document.encode("utf-8", "surrogatepass")
        # The length keeps ["ab", "c"] apart from ["a", "bc"].
        digest.update(len(data).to_bytes(8, "little") + data)
        num_documents += 1
        num_characters += len(document)
    if not num_characters:
        raise UserError(f"text: {num_documents} documents with 0 characters; there is nothing to harvest")
    return TextFacts(num_documents, num_characters, digest.hexdigest())


def cut_into_pieces(documents: Iterable[str], tokenizer: Any, context_length: int) -> Iterator[Piece]:
    """Every token of every document once, in order, as pieces of `context_length` tokens (the last of each shorter).

    Each piece stands in the special tokens that the tokenizer puts around a text, as if it were a text of its own.
    Raises UserError when `context_length` leaves no room for text.
    """
    frame: tuple[list[int], list[int]] | None = None
    stream = iter(documents)
    first_document = 0
    while texts := list(islice(stream, _DOCUMENTS_PER_CALL)):
        for index, ids in enumerate(_encode(tokenizer, texts, add_special_tokens=False)):
            if not ids:
                continue
            if frame is None:
                frame = special_frame(ids, _encode(tokenizer, [texts[index]], add_special_tokens=True)[0])
            prefix, suffix = frame
            room = context_length - len(prefix) - len(suffix)
            if room < 1:
                raise UserError(
                    f"context_length: {context_length} leaves no room for text beside "
                    f"{len(prefix) + len(suffix)} special tokens"
                )
            for start in range(0, len(ids), room):
                token_ids = np.array(prefix + ids[start : start + room] + suffix, dtype=np.int32)
                yield Piece(token_ids, first_document + index)
        first_document += len(texts)


def special_frame(bare: list[int], framed: list[int]) -> tuple[list[int], list[int]]:
    """Special tokens before and after a text, from its ids without and with them. Raises UserError."""
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise UserError("model: its tokenizer changes a text's tokens when special tokens are added; lexray cannot cut it")


def _encode(tokenizer: Any, texts: list[str], *, add_special_tokens: bool) -> list[list[int]]:
    encoded = tokenizer(
        texts, add_special_tokens=add_special_tokens, return_attention_mask=False, return_token_type_ids=False
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
