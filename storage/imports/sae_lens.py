"""Import the activations that SAELens caches, in both forms in which Hugging Face's `datasets` keeps them.

On disk (`save_to_disk`) a folder holds `dataset_info.json` (a feature `Array2D` of shape (context, width) for each hook
point, and `token_ids`), `state.json` (names of the data files in order) and Arrow streams, in which such an array is a
list of lists. A repository of the hub (`push_to_hub`) holds Parquet files in `data/`, whose schema carries the same
features. Both are read with pyarrow alone. A context becomes a document, since that is all the cache knows: SAELens
packs texts into contexts, and a slice of positions (`seqpos_slice`) is stored without its offset.

Legend of shapes: N contexts, T positions of a context, D width of a site.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lexray.storage.errors import UserError
from lexray.storage.imports.rows import UNKNOWN_TOKEN, Block, SiteNames, block_rows
from lexray.storage.imports.source import SourceFile, SourceFolder

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
PARQUET = ".parquet"
TOKEN_IDS = "token_ids"
_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True, kw_only=True)
class HookPoint:
    """A column of activations."""

    context: int
    width: int
    dtype: str


def is_sae_lens_cache(folder: SourceFolder) -> bool:
    """Whether `save_to_disk` wrote this folder, or `push_to_hub` its files."""
    return any(folder.has(name) for name in (STATE, SPLITS)) or bool(_parquet_files(folder))


class SaeLensCache:
    """The rows of a cache. Raises UserError for what is not laid out as SAELens does."""

    def __init__(self, folder: SourceFolder, names: SiteNames, document_rows: int | None = None) -> None:
        if document_rows is not None:
            raise UserError(
                f"--document-rows: {document_rows}, but in a SAELens cache each context is a document; leave it out"
            )
        self._files, features = _saved_files(folder) if folder.has(STATE) or folder.has(SPLITS) else _hub_files(folder)
        hooks = _hook_points(features)
        if not hooks:
            raise UserError(f"{folder}: no feature is an Array2D of floats; its features are {', '.join(features)}")
        self._chosen = names.choose(list(hooks), str(folder))
        self._hooks = {site: hooks[old] for site, old in self._chosen.items()}
        self._context = self._common_context()
        self._contexts = {file: _contexts(file) for file in self._files}
        self._has_tokens = TOKEN_IDS in features
        self.rows = sum(self._contexts.values()) * self._context
        if not self.rows:
            raise UserError(f"{folder}: its {len(self._files)} data files have 0 contexts; there is nothing to import")
        self.widths = {site: hook.width for site, hook in self._hooks.items()}
        self.dtypes = {site: _DTYPES[hook.dtype] for site, hook in self._hooks.items()}
        self.sources = {site: f"{old} in SAELens cache {folder}" for site, old in self._chosen.items()}
        token_ids = "as the cache says" if self._has_tokens else f"unknown ({UNKNOWN_TOKEN})"
        self.notes = [
            f"documents: one for each context of {self._context} positions",
            f"token ids: {token_ids}; which of them are special is not told, so none is left out when rows are read",
        ]
        self.provenance = self._describe(folder, token_ids)

    def blocks(self) -> Iterator[Block]:
        """All rows in order, some contexts at a time."""
        row_bytes = sum(width * self.dtypes[site].itemsize for site, width in self.widths.items())
        step, first = max(1, block_rows(row_bytes) // self._context), 0
        for file in self._files:
            inside = 0
            for batch in _batches(file, step):
                for start in range(0, batch.num_rows, step):
                    part = batch.slice(start, step)
                    yield self._block(part, first + inside, inside, file)
                    inside += part.num_rows
            first += inside

    def _block(self, part: Any, first: int, inside: int, file: SourceFile) -> Block:
        """The rows of contexts from number `first` on, which is number `inside` of its file."""
        contexts, length = part.num_rows, self._context

        def origin(name: str, row: int) -> str:
            return f"{file}, {self._chosen.get(name, name)}, context {inside + row // length}, position {row % length}"

        vectors = {}
        for site, hook in self._hooks.items():
            values = _flat(part, self._chosen[site], contexts * length * hook.width, file)
            vectors[site] = torch.from_numpy(values.reshape(-1, hook.width).copy())
        rows = np.arange(contexts * length)
        if self._has_tokens:
            token_id = _flat(part, TOKEN_IDS, contexts * length, file)
        else:
            token_id = np.full(len(rows), UNKNOWN_TOKEN)
        columns = {"token_id": token_id, "position": rows % length, "document": first + rows // length}
        return Block(vectors, columns, origin)

    def _common_context(self) -> int:
        (first, expected), *others = [(self._chosen[site], hook.context) for site, hook in self._hooks.items()]
        for name, context in others:
            if context != expected:
                raise UserError(
                    f"{name} has contexts of {context} positions, but {first} of {expected}; each row needs both"
                )
        return expected

    def _describe(self, folder: SourceFolder, token_ids: str) -> dict[str, Any]:
        return {
            "format": "SAELens cached activations",
            "folder": str(folder),
            "files": len(self._files),
            "bytes": sum(file.size for file in self._files),
            "sites": self._chosen,
            "documents": f"one for each context of {self._context} positions",
            "token_ids": token_ids,
        }


def _saved_files(folder: SourceFolder) -> tuple[list[SourceFile], dict[str, Any]]:
    """The data files of `save_to_disk` in order, and the features by their names."""
    if folder.has(SPLITS):
        splits = ", ".join(inside.name for inside in folder.folders() if inside.has(STATE))
        raise UserError(f"{folder}: holds the splits {splits}; give the folder of one of them")
    state, info = (_read_json(folder.file(name)) for name in (STATE, INFO))
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder.file(STATE)}: the rows are reordered by an index file; save it again after flatten_indices()"
        )
    if not isinstance(state.get("_data_files"), list) or not isinstance(info.get("features"), dict):
        raise UserError(f"{folder}: {STATE} names no data files or {INFO} no features; save it again by save_to_disk")
    names = [entry["filename"] for entry in state["_data_files"]]
    for name in names:
        if not isinstance(name, str) or "/" in name or name in ("", ".", ".."):
            raise UserError(f"{folder.file(STATE)}: _data_files: {name!r} is not the name of a file in this folder")
    return [folder.file(name) for name in names], info["features"]


def _hub_files(folder: SourceFolder) -> tuple[list[SourceFile], dict[str, Any]]:
    """The Parquet files of `push_to_hub` in order, and the features by their names."""
    files = _parquet_files(folder)
    splits = sorted({re.sub(r"-\d+-of-\d+.*", "", file.name) for file in files})
    if len(splits) > 1:
        raise UserError(f"{folder}: holds the splits {', '.join(splits)}; give a folder with the files of one of them")
    with _open_parquet(files[0], edges=True) as parquet:
        schema = parquet.schema_arrow
    try:
        features: dict[str, Any] = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{files[0]}: its schema has no features of `datasets`; its columns are {schema.names}"
        ) from error
    return files, features


def _parquet_files(folder: SourceFolder) -> list[SourceFile]:
    """Directly in the folder, else in `data/`."""
    for place in (folder, folder.folder("data")):
        found = [file for file in place.files() if file.suffix == PARQUET]
        if found:
            return found
    return []


def _read_json(file: SourceFile) -> dict[str, Any]:
    try:
        content = json.loads(file.read())
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; a folder of save_to_disk has one, so this one is not whole") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON") from error
    return content if isinstance(content, dict) else {}


def _hook_points(features: dict[str, Any]) -> dict[str, HookPoint]:
    """The features that are activations."""
    return {
        name: HookPoint(context=feature["shape"][0], width=feature["shape"][1], dtype=feature["dtype"])
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "Array2D" and feature.get("dtype") in _DTYPES
    }


def _contexts(file: SourceFile) -> int:
    """How many a data file holds."""
    if file.suffix != PARQUET:
        return sum(batch.num_rows for batch in _batches(file, 1))
    with _open_parquet(file, edges=True) as parquet:
        return int(parquet.metadata.num_rows)


def _batches(file: SourceFile, contexts: int) -> Iterator[Any]:
    """The record batches of a data file: of Arrow as they lie there, of Parquet with this many contexts at most."""
    if file.suffix == PARQUET:
        with _open_parquet(file) as parquet:
            yield from parquet.iter_batches(batch_size=contexts)
        return
    try:
        with file.local() as path, pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            yield from stream
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file, but {STATE} names it; copy the whole folder") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole Arrow stream ({str(error).splitlines()[0]}); copy it again") from error


@contextmanager
def _open_parquet(file: SourceFile, *, edges: bool = False) -> Iterator[Any]:
    try:
        with file.local(edges=edges) as path, pq.ParquetFile(path, memory_map=True) as parquet:
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a whole Parquet file ({str(error).splitlines()[0]}); copy it again") from error


def _flat(part: Any, name: str, expected: int, file: SourceFile) -> np.ndarray:
    """All numbers of a column of nested lists. Raises UserError unless there are as many as its shape says."""
    if name not in part.schema.names:
        raise UserError(
            f"{file}: has no column {name!r}, but its features list it; its columns are {part.schema.names}"
        )
    values = part.column(name)
    if isinstance(values, pa.ExtensionArray):  # where `datasets` was imported, pyarrow knows its types
        values = values.storage
    nulls = 0
    while pa.types.is_nested(values.type):
        nulls += values.null_count
        values = values.flatten()
    if nulls + values.null_count or len(values) != expected:
        per_context = expected // part.num_rows
        raise UserError(
            f"{file}: {name} has {len(values):,} numbers in {part.num_rows} contexts, expected {per_context:,} "
            "in each, none of them null; cache it again"
        )
    array: np.ndarray = values.to_numpy(zero_copy_only=False)
    return array
