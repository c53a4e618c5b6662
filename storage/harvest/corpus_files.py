"""Files of a corpus: found by path, url or glob, read whole, or row by row as JSON lines and parquet."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError
from lexray.storage.store import StorageSettings, Store, reachable

_ROWS_PER_READ = 256


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A file on this machine or behind a url."""

    field: str
    """Of the harvest file, for errors."""
    name: str
    """Its path or url."""
    size: int
    """Bytes."""
    settings: StorageSettings

    @contextmanager
    def open(self, *, unpack: bool = False) -> Iterator[BinaryIO]:
        """For reading. Raises UserError for any trouble of the file or its store."""
        filesystem = Store.at(self.name, self.settings).filesystem
        try:
            with (
                reachable(self.field, self.name),
                filesystem.open(self.name, "rb", compression="infer" if unpack else None) as file,
            ):
                yield file
        except FileNotFoundError as error:
            raise UserError(f"{self.field}: {self.name} is not there any more") from error

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()


def find_files(field: str, pattern: str, settings: StorageSettings) -> list[CorpusFile]:
    """The files that match, in the order of their names. Raises UserError when there is none."""
    found = _glob_urls(field, pattern, settings) if "://" in pattern else _glob_paths(pattern)
    if not found:
        raise UserError(f"{field}: no file matches {pattern!r}")
    return [CorpusFile(field=field, name=name, size=size, settings=settings) for name, size in sorted(found.items())]


def _glob_paths(pattern: str) -> dict[str, int]:
    paths = [Path(name) for name in glob.glob(str(Path(pattern).expanduser()), recursive=True)]
    return {str(path): path.stat().st_size for path in paths if path.is_file()}


def _glob_urls(field: str, pattern: str, settings: StorageSettings) -> dict[str, int]:
    filesystem = Store.at(pattern, settings).filesystem
    with reachable(field, pattern):
        try:
            found = filesystem.glob(pattern, detail=True)
        except FileNotFoundError:
            return {}
    scheme = pattern.split("://", 1)[0]
    entries = {name: entry for name, entry in found.items() if entry.get("type", "file") == "file"}
    return {name if "://" in name else f"{scheme}://{name}": int(e.get("size") or 0) for name, e in entries.items()}


def rows_of_jsonl(file: CorpusFile, column: str) -> Iterator[Any]:
    """One value for each line that is not blank; None where the object has no such key."""
    with file.open(unpack=True) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{file.field}: {file.name} line {number} is not JSON") from error
            if not isinstance(row, dict):
                raise UserError(f"{file.field}: {file.name} line {number} is no object with a key {column!r}")
            if number == 1 and column not in row:
                raise UserError(f"{file.field}: {file.name} has no key {column!r}{nearest(column, list(row))}")
            yield row.get(column)


def rows_of_parquet(file: CorpusFile, column: str) -> Iterator[Any]:
    """One value for each row, read a few hundred rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with file.open() as opened:
        try:
            table = pq.ParquetFile(opened)
            if column not in table.schema_arrow.names:
                known = nearest(column, table.schema_arrow.names)
                raise UserError(f"{file.field}: {file.name} has no column {column!r}{known}")
            for batch in table.iter_batches(batch_size=_ROWS_PER_READ, columns=[column]):
                yield from batch.column(0).to_pylist()
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{file.field}: {file.name} is not a parquet file ({reason})") from error
