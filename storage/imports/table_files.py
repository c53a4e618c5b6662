"""Tables of Arrow and Parquet: the files that `datasets` leaves (`save_to_disk`, `push_to_hub`) and any others.

`save_to_disk` leaves `dataset_info.json` (features), `state.json` (names of the data files in order) and Arrow streams.
A repository of the hub holds Parquet files in `data/`, whose schema carries the features. All are read with pyarrow
alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.imports.array_files import check_ratio
from lexray.storage.imports.file_names import check_one_series, in_order
from lexray.storage.imports.rows import ImportOptions
from lexray.storage.imports.source import SourceFile, SourceFolder
from lexray.storage.imports.tensor_layout import tensor_files

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
PARQUET, ARROW = (".parquet", ".pq"), (".arrow", ".feather")
Tables = tuple[list[SourceFile], Any, dict[str, Any]]
"""Data files in order, the Arrow schema of the first, and features of `datasets` by name where files carry them."""


def is_tables(folder: SourceFolder) -> bool:
    """Whether a folder holds tables rather than files of tensors."""
    return any(folder.store.exists(name) for name in (STATE, SPLITS)) or bool(_table_files(folder))


def find_tables(folder: SourceFolder, options: ImportOptions) -> Tables:
    """The tables of a folder. Raises UserError when they are not one, or not whole."""
    for option, value in (("--files", options.files if options.files == "sites" else None), ("--lists", options.lists)):
        if value is not None:
            raise UserError(f"{option}: {value}, but {folder} holds tables, whose columns are sites; leave it out")
    if options.raw is not None:
        raise UserError(f"--raw-dtype: {options.raw.dtype}, but {folder} holds tables, not raw numbers; leave it out")
    if folder.store.exists(STATE) or folder.store.exists(SPLITS):
        return _saved(folder)
    files = in_order(_table_files(folder))
    beside, _ = tensor_files(folder, None)
    if beside:
        raise UserError(f"{folder}: holds the table {files[0].name} beside the tensors {beside[0].name}; keep one kind")
    if options.files is None:
        check_one_series(files, folder, "add --files rows if they are one, else give a folder for each")
    schema = read_schema(files[0])
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        features = {}
    return files, schema, features if isinstance(features, dict) else {}


def _table_files(folder: SourceFolder) -> list[SourceFile]:
    """Directly in the folder, else in `data/`."""
    for place in (folder, folder.folder("data")):
        found = [file for file in place.files() if file.suffix in PARQUET + ARROW]
        if found:
            return found
    return []


def _saved(folder: SourceFolder) -> Tables:
    """What `save_to_disk` left."""
    if folder.store.exists(SPLITS):
        splits = ", ".join(inside.name for inside in folder.folders() if inside.store.exists(STATE))
        raise UserError(f"{folder}: holds the splits {splits}; give the folder of one of them")
    state, info = (_read_json(folder.file(name)) for name in (STATE, INFO))
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder.file(STATE)}: the rows are reordered by an index file; save it again after flatten_indices()"
        )
    entries, features = state.get("_data_files"), info.get("features")
    if not isinstance(entries, list) or not isinstance(features, dict):
        raise UserError(f"{folder}: {STATE} names no data files or {INFO} no features; save it again by save_to_disk")
    names: list[str] = []
    for entry in entries:
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
            raise UserError(f"{folder.file(STATE)}: {name!r} is no name of a data file; save it again by save_to_disk")
        names.append(name)
    if not names:
        raise UserError(f"{folder}: {STATE} names 0 data files; there is nothing to import")
    present = {file.name for file in folder.files()}
    for name in names:
        if name not in present:
            raise UserError(f"{folder.file(name)}: no such file, but {STATE} names it; copy the whole folder")
    files = [folder.file(name) for name in names]
    return files, read_schema(files[0]), features


def _read_json(file: SourceFile) -> dict[str, Any]:
    absent = f"{file}: no such file; a folder of save_to_disk has one, so this one is not whole"
    with as_user_error(lambda _: absent, FileNotFoundError):
        data = file.read()
    with as_user_error(lambda _: f"{file}: not valid JSON", ValueError, RecursionError):
        content = json.loads(data)
    return content if isinstance(content, dict) else {}


def read_schema(file: SourceFile) -> Any:
    """The Arrow schema of a data file."""
    is_parquet = file.suffix in PARQUET
    with open_parquet(file, edges=True) if is_parquet else _open_arrow(file) as opened:
        schema = opened.schema_arrow if is_parquet else opened.schema
        if len(set(schema.names)) < len(schema.names):  # or names are not readable
            raise ValueError(f"two columns of one name among {', '.join(schema.names)}"[:200])
    return schema


def record_count(file: SourceFile) -> int:
    """Records of a data file; an Arrow stream is read through for it."""
    if file.suffix in PARQUET:
        with open_parquet(file, edges=True) as parquet:
            return int(parquet.metadata.num_rows)
    return sum(batch.num_rows for batch in record_batches(file, 1))


def record_batches(file: SourceFile, records: int, columns: list[str] | None = None) -> Iterator[Any]:
    """The record batches of a data file: of Arrow as they lie there, of Parquet with this many records at most."""
    if file.suffix in PARQUET:
        with open_parquet(file) as parquet:
            yield from parquet.iter_batches(batch_size=records, columns=columns)
        return
    with _open_arrow(file) as reader:
        is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            batch.validate(full=True)  # raises ArrowInvalid where lists point beyond their data
            yield batch


@contextmanager
def _open_arrow(file: SourceFile) -> Iterator[Any]:
    """A reader of an Arrow stream or an Arrow file, mapped into memory."""
    with _reading(file, "Arrow stream"), file.local() as path, pa.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        with (pa.ipc.open_file if is_file else pa.ipc.open_stream)(mapped) as reader:
            yield reader


@contextmanager
def open_parquet(file: SourceFile, *, edges: bool = False) -> Iterator[Any]:
    """A Parquet file, mapped into memory; with `edges` only what its end says of it is to be used."""
    with (
        _reading(file, "Parquet file"),
        file.local(edges=edges) as path,
        pq.ParquetFile(path, memory_map=True) as parquet,
    ):
        _check_claims(parquet.metadata, file)
        yield parquet


def _reading(file: SourceFile, kind: str) -> AbstractContextManager[None]:
    """Turn any error into one line for the user: a damaged file makes pyarrow fail in any way."""
    return as_user_error(lambda error: f"{file}: not a whole {kind} ({one_line(error).rstrip('.')}); copy it again")


def _check_claims(metadata: Any, file: SourceFile) -> None:
    """Raise UserError when a file claims more numbers than its bytes can hold of any vectors."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    numbers = sum(group.column(index).num_values for group in groups for index in range(group.num_columns))
    claimed = max(numbers, metadata.num_rows, sum(group.num_rows for group in groups))
    check_ratio(claimed, file.size, f"{file}: claims {claimed:,} numbers")
