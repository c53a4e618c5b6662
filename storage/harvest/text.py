"""Read the documents of a harvest from a Python module, files, JSON lines, parquet files or a dataset.

Documents are streamed, never held all at once.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from lexray.storage.errors import UserError, as_user_error, named_line, one_line
from lexray.storage.harvest import corpus_tables
from lexray.storage.harvest.corpus_files import CorpusFile, find_files
from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.harvest.corpus_tables import TablePlace, open_dataset
from lexray.storage.harvest.harvest_file import TextChoice
from lexray.storage.store import StorageSettings

MOST_DOCUMENT_BYTES = 1 << 30
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONE_SURROGATE = re.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


@dataclass(kw_only=True)
class TextMeter:
    """Counts and hashes documents as they pass."""

    documents: int = 0
    characters: int = 0
    _digest: Any = field(default_factory=hashlib.sha256)

    def pass_on(self, documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            data = document.encode()
            # The length distinguishes ["ab", "c"] from ["a", "bc"].
            self._digest.update(len(data).to_bytes(8, "little") + data)
            self.documents += 1
            self.characters += len(document)
            yield document

    def facts(self) -> dict[str, Any]:
        """Return the identity of the text: equal facts mean equal documents in the same order.

        Raises UserError when there was no character.
        """
        if not self.characters:
            raise UserError(f"text: {self.documents} documents with 0 characters; there is nothing to harvest")
        return {"documents": self.documents, "characters": self.characters, "sha256": self._digest.hexdigest()}


def read_documents(text: TextChoice, settings: StorageSettings, report: CorpusReport | None = None) -> Iterator[str]:
    """Yield the documents in their fixed order, as valid text; `report` counts repairs.

    Raises UserError naming the module, file, line or row that cannot be read.
    """
    report = CorpusReport() if report is None else report
    for place, value in _read(text, settings, report):
        yield _as_document(place, text.column, value, report)


def _read(text: TextChoice, settings: StorageSettings, report: CorpusReport) -> Iterator[tuple[TablePlace, Any]]:
    """Yield the place and the value of each document."""
    if text.python is not None:
        for index, document in enumerate(_documents_of_module(text.python)):
            yield TablePlace(f"text.python: {text.python}", "entry", index), document
    elif text.files is not None:
        for file in find_files("text.files", text.files, settings, report):
            yield from _documents_of_file(file, report)
    elif text.dataset is not None:
        opened = open_dataset("text.dataset", text, streaming=text.streaming)
        for number, value in enumerate(corpus_tables.rows_of_dataset("text.dataset", opened, text.column)):
            yield TablePlace(f"text.dataset: {text.dataset}", "row", number), value
    else:
        kind = "jsonl" if text.jsonl is not None else "parquet"
        rows_of = corpus_tables.rows_of_jsonl if kind == "jsonl" else corpus_tables.rows_of_parquet
        for file in find_files(f"text.{kind}", getattr(text, kind), settings, report):
            yield from rows_of(file, text.column)


def _as_document(place: TablePlace, column: str, value: Any, report: CorpusReport) -> str:
    """Return a value as a document; a missing one is empty, so that document numbers equal row numbers."""
    if value is None:
        report.add("missing_texts", str(place))
        return ""
    if not isinstance(value, str):
        raise UserError(f"{place}: {column!r} is a {type(value).__name__}, expected a string")
    if value.isascii() or not _SURROGATE.search(value):
        return value
    mended, count = _LONE_SURROGATE.subn("\ufffd", value)
    report.add("lone_surrogates", str(place), count)
    return mended.encode("utf-16-le", "surrogatepass").decode("utf-16-le")  # adjacent surrogate halves form a character


def _documents_of_file(file: CorpusFile, report: CorpusReport) -> Iterator[tuple[TablePlace, str]]:
    """Yield the file, or each member of a zip archive."""
    with file.open_unpacked() as members:
        for name, opened in members:
            data = _read_whole(name, opened)
            if data.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{name} is UTF-16 text; convert it to UTF-8")
            document = corpus_tables.decode(name, data)
            if document.startswith("\ufeff"):
                report.add("byte_order_marks", name)
            yield TablePlace(name, "", 0), document.removeprefix("\ufeff")


def _read_whole(name: str, file: BinaryIO) -> bytes:
    data = bytearray()
    while block := file.read(1 << 20):
        data += block
        if len(data) > MOST_DOCUMENT_BYTES:
            raise UserError(f"{name} is a document of more than {MOST_DOCUMENT_BYTES:,} bytes; divide it")
    return bytes(data)


def _documents_of_module(place: str) -> list[str]:
    module_name, attribute = place.split(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        said = one_line(error) if isinstance(error, ImportError) else named_line(error)
        raise UserError(f"text.python: cannot import {module_name!r} ({said})") from error
    with as_user_error(lambda _: f"text.python: module {module_name!r} has no {attribute!r}", AttributeError):
        found = getattr(module, attribute)
    documents = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(documents, list | tuple):
        raise UserError(f"text.python: {place} is a {type(found).__name__}, expected a list or dict of strings")
    for index, document in enumerate(documents):
        if not isinstance(document, str):
            raise UserError(f"text.python: {place} entry {index} is a {type(document).__name__}, expected a string")
    return list(documents)
