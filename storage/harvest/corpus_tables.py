"""Read tables of a corpus row by row: JSON lines, parquet and arrow files, Hugging Face datasets.

A row is its place, for errors, and the value of one column.
"""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.corpus_files import CorpusFile
from lexray.storage.harvest.harvest_file import ImageChoice, TextChoice
from lexray.storage.harvest.packed_files import DamagedFileError

MOST_LINE_BYTES = 1 << 30
_ROWS_PER_READ = 256
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class TablePlace(NamedTuple):
    """Place of a document in its source; formatted only when needed."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file} {self.unit} {self.number}" if self.unit else self.file


def rows_of_jsonl(file: CorpusFile, column: str) -> Iterator[tuple[TablePlace, Any]]:
    """Yield one value for each line that is not blank; None where the object has no such key."""
    with file.open_unpacked() as members:
        for name, lines in members:
            is_first = True
            for number, line in _lines(name, lines):
                row = _parse(TablePlace(name, "line", number), line, column)
                if is_first and column not in row:
                    raise UserError(f"{name} has no key {column!r}{nearest(column, list(row))}")
                is_first = False
                yield TablePlace(name, "line", number), row.get(column)


def _lines(name: str, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield number, from 1, and bytes of each line that is not blank."""
    number = 0
    try:
        while line := file.readline(MOST_LINE_BYTES + 1):
            number += 1
            if len(line) > MOST_LINE_BYTES:
                raise UserError(
                    f"{name} line {number} is longer than {MOST_LINE_BYTES:,} bytes; give one JSON object a line"
                )
            if number == 1 and line.startswith(_UTF16):
                raise UserError(f"{name} is UTF-16 text; convert it to UTF-8")
            if line.strip():
                yield number, line
    except DamagedFileError as error:
        raise UserError(f"{error}; the first {number:,} lines could be read") from error


def _parse(place: TablePlace, line: bytes, column: str) -> dict[str, Any]:
    try:
        # A lone encoded surrogate passes here: it is replaced later, like one written as \ud83d.
        row = json.loads(line.decode("utf-8-sig", "surrogatepass"))
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text (byte {error.start} of it)") from error
    except RecursionError as error:
        raise UserError(f"{place} is nested too deeply") from error
    except ValueError as error:
        raise UserError(f"{place} is not JSON ({one_line(error)})") from error
    if not isinstance(row, dict):
        raise UserError(f"{place} is no object with a key {column!r}")
    return row


def rows_of_parquet(file: CorpusFile, column: str) -> Iterator[tuple[TablePlace, Any]]:
    """Yield one value for each row of a parquet or arrow file, read a few hundred rows at a time."""

    def message(error: Exception) -> str:
        return f"{file.place} is not a parquet file that can be read ({one_line(error)})"

    number, damage = 0, (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError)
    with file.open() as opened, as_user_error(message, *damage):
        for batch in _batches(file, opened, column):
            for value in _values(file, number, batch):
                yield TablePlace(file.place, "row", number), value
                number += 1


def _batches(file: CorpusFile, opened: Any, column: str) -> Iterator[Any]:
    """Yield the column (rows) a few hundred rows at a time."""
    head = opened.peek(8)[:8]
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):  # arrow file and stream formats, as `datasets` saves
        reader = pa.ipc.open_file(opened) if head.startswith(b"ARROW1") else pa.ipc.open_stream(opened)
        _check_column(file, reader.schema.names, column)
        count = getattr(reader, "num_record_batches", None)
        batches = reader if count is None else (reader.get_batch(index) for index in range(count))
        for batch in batches:
            for start in range(0, len(batch), _ROWS_PER_READ):
                yield batch.column(column).slice(start, _ROWS_PER_READ)
        return
    table = pq.ParquetFile(opened)
    _check_column(file, table.schema_arrow.names, column)
    for batch in table.iter_batches(batch_size=_ROWS_PER_READ, columns=[column]):
        yield batch.column(0)


def _check_column(file: CorpusFile, names: list[str], column: str) -> None:
    if column not in names:
        raise UserError(f"{file.place} has no column {column!r}{nearest(column, names)}")


def _values(file: CorpusFile, first: int, column: Any) -> list[Any]:
    """Return the values of a column of strings, or of UTF-8 bytes."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string_view(column.type) or pa.types.is_binary_view(column.type):
        column = pc.cast(column, pa.large_binary())
    elif pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    elif not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        return list(column.to_pylist())
    return [
        value if value is None else decode(str(TablePlace(file.place, "row", first + index)), value)
        for index, value in enumerate(column.to_pylist())
    ]


def decode(place: str, data: bytes) -> str:
    """Decode UTF-8 bytes, keeping lone encoded surrogates. Raises UserError."""
    with as_user_error(lambda error: f"{place} is not UTF-8 text (byte {error.start})", UnicodeDecodeError):
        return data.decode("utf-8", "surrogatepass")


def open_dataset(
    field: str, choice: TextChoice | ImageChoice, *, streaming: bool, data_files: list[str] | None = None
) -> Any:
    """The split of the dataset that `choice` names, or of the parquet files `data_files`. Raises UserError."""
    needed = "reading a Hugging Face dataset needs the datasets package; pip install -e '.[corpora]'"
    with as_user_error(lambda _: needed, ImportError):
        import datasets
    with _opening(field, str(choice.dataset or data_files), datasets):
        saved = [os.path.join(str(choice.dataset), name) for name in ("state.json", "dataset_info.json")]
        if data_files is None and all(map(os.path.isfile, saved)):  # by Dataset.save_to_disk
            opened = datasets.load_from_disk(choice.dataset)
        else:
            opened = datasets.load_dataset(
                choice.dataset if data_files is None else "parquet",
                choice.config,
                split=choice.split,
                revision=choice.revision,
                streaming=streaming,
                # The library takes names for patterns.
                data_files=None if data_files is None else [glob.escape(name) for name in data_files],
            )
    names = list(opened.column_names or ())
    if names and choice.column not in names:
        raise UserError(
            f"{field}: {choice.dataset or data_files} has no column {choice.column!r}{nearest(choice.column, names)}"
        )
    return opened


def rows_of_dataset(field: str, opened: Any, column: str) -> Iterator[Any]:
    """The column's values in order; None where a row has none."""
    with as_user_error(lambda error: f"{field}: cannot read its rows ({one_line(error)})"):
        for row in opened.select_columns([column]):
            yield row.get(column)


@contextmanager
def _opening(field: str, what: str, datasets: Any) -> Iterator[None]:
    """Without bars for what takes a moment; whatever goes wrong becomes one line for the user."""
    bars_were_on = datasets.utils.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    except Exception as error:
        said = one_line(error)
        if os.path.isdir(what) and glob.escape(what) != what:
            said = "the datasets library takes *, ? and [ in a folder's name for a pattern; rename the folder"
        raise UserError(f"{field}: cannot read {what} ({said})") from error
    finally:
        if bars_were_on:
            datasets.enable_progress_bars()
