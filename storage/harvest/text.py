"""Text at the entry of a harvest: documents from a Python module, files, JSON lines, parquet files or a dataset.

Documents are read one after the other, never held all at once.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.harvest.corpus_files import CorpusFile, find_files, rows_of_jsonl, rows_of_parquet
from lexray.storage.harvest.harvest_file import TextChoice
from lexray.storage.harvest.hub_datasets import open_dataset, rows_of_dataset
from lexray.storage.store import StorageSettings


@dataclass(frozen=True)
class TextFacts:
    """What identifies a text: equal facts are equal documents in the same order."""

    documents: int
    characters: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(kw_only=True)
class TextMeter:
    """Counts and hashes documents as they pass."""

    documents: int = 0
    characters: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def pass_on(self, documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            data = document.encode("utf-8", "surrogatepass")
            # The length keeps ["ab", "c"] apart from ["a", "bc"].
            self._digest.update(len(data).to_bytes(8, "little") + data)
            self.documents += 1
            self.characters += len(document)
            yield document

    def facts(self) -> TextFacts:
        """Raises UserError when there was no character."""
        if not self.characters:
            raise UserError(f"text: {self.documents} documents with 0 characters; there is nothing to harvest")
        return TextFacts(self.documents, self.characters, self._digest.hexdigest())


def read_documents(text: TextChoice, settings: StorageSettings) -> Iterator[str]:
    """The documents in their fixed order. Raises UserError naming the module, file or row that cannot be read."""
    if text.python is not None:
        yield from _documents_of_module(text.python)
    elif text.files is not None:
        for file in find_files("text.files", text.files, settings):
            yield _decode(file)
    elif text.dataset is not None:
        opened = open_dataset("text.dataset", text, streaming=text.streaming)
        rows = rows_of_dataset("text.dataset", opened, text.column)
        yield from _strings(f"text.dataset: {text.dataset}", text.column, rows)
    else:
        kind, read = ("jsonl", rows_of_jsonl) if text.jsonl is not None else ("parquet", rows_of_parquet)
        for file in find_files(f"text.{kind}", getattr(text, kind), settings):
            yield from _strings(f"text.{kind}: {file.name}", text.column, read(file, text.column))


def _strings(place: str, column: str, rows: Iterable[Any]) -> Iterator[str]:
    """The rows as documents; a missing value is an empty one, so that numbers of documents are numbers of rows."""
    for number, row in enumerate(rows):
        if not isinstance(row, str | None):
            raise UserError(f"{place} row {number}: {column!r} is a {type(row).__name__}, expected a string")
        yield row or ""


def _decode(file: CorpusFile) -> str:
    try:
        return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file.field}: {file.name} is not UTF-8 text (byte {error.start})") from error


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
