"""Columns of a table that hold vectors: one vector in each record, or a document of vectors.

Legend of shapes: N records, T vectors of a record, D width of a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexray.storage.errors import UserError
from lexray.storage.imports.source import SourceFile
from lexray.storage.imports.table_files import read_schema, record_batches

_FLOATS = {"halffloat": "float16", "float": "float32", "double": "float64"}
_ARRAY = "Array2D"


@dataclass(frozen=True, kw_only=True)
class VectorColumn:
    """A column of vectors."""

    depth: int
    """1: a record holds a vector. 2: a record holds a document of vectors."""
    dtype: str
    width: int | None
    """Numbers of a vector where the schema says it."""
    context: int | None = None
    """Vectors of a record where the features say it."""


class Vectors(NamedTuple):
    """The vectors of consecutive records."""

    counts: np.ndarray
    """Vectors of each record (N)."""
    flat: np.ndarray
    """All numbers, record after record."""
    width: int
    """0 when there is no vector."""


def vector_columns(schema: Any, features: dict[str, Any]) -> dict[str, VectorColumn]:
    """The columns of a schema that hold vectors of floats, by name."""
    found = {}
    for name, kind in zip(schema.names, schema.types, strict=True):
        sizes, leaf = nesting(kind)
        dtype = _FLOATS.get(str(leaf))
        if dtype is None or len(sizes) not in (1, 2) or (features and name not in features):
            continue
        context, width = (None, *sizes)[-2:]
        stated = _stated_shape(features.get(name)) if len(sizes) == 2 else None
        if stated is not None:
            context, width = stated
        found[name] = VectorColumn(depth=len(sizes), dtype=dtype, width=width, context=context)
    return found


def nesting(kind: Any) -> tuple[list[int | None], Any]:
    """The fixed size, if any, of each level of lists of a type, and the type of the items of the last."""
    sizes: list[int | None] = []
    while True:
        if isinstance(kind, pa.FixedShapeTensorType):
            return ([*sizes, *kind.shape] if len(kind.shape) == 1 else [None] * 9), kind.value_type
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_fixed_size_list(kind):
            sizes.append(kind.list_size)
            kind = kind.value_type
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            sizes.append(None)
            kind = kind.value_type
        else:
            return sizes, kind


def _stated_shape(feature: Any) -> tuple[int | None, int | None] | None:
    """Contexts and width of a feature `Array2D`, whose first dimension may be open."""
    shape = feature.get("shape") if isinstance(feature, dict) and feature.get("_type") == _ARRAY else None
    if not isinstance(shape, list) or len(shape) != 2:
        return None
    context, width = (size if isinstance(size, int) and size > 0 else None for size in shape)
    return context, width


def check_schemas(files: Sequence[SourceFile], names: Sequence[str]) -> None:
    """Raise UserError for the first file in which a column is another than in the first file."""
    expected = read_schema(files[0])
    for file in files[1:]:
        schema = read_schema(file)
        for name in names:
            if name not in schema.names:
                raise UserError(f"{file}: has no column {name}, but {files[0].name} has; save it again")
            kind, known = schema.field(name).type, expected.field(name).type
            if nesting(kind) != nesting(known):
                raise UserError(f"{file}: {name} is a {kind}, but in {files[0].name} a {known}; save it again")


def find_width(files: Sequence[SourceFile], name: str, column: VectorColumn) -> int:
    """Numbers of a vector of a column, from the schema or else from the first vector."""
    if column.width:
        return column.width
    for file in files:
        inside = 0
        for batch in record_batches(file, 1, [name]):
            width = read_vectors(batch.slice(0, 1), name, column, str(file), inside).width if batch.num_rows else 0
            if width:
                return width
            inside += batch.num_rows
    raise UserError(f"{files[0]}: {name} holds 0 vectors, or vectors of 0 numbers; there is nothing to import")


def read_vectors(batch: Any, name: str, column: VectorColumn, place: str, first: int) -> Vectors:
    """The vectors of a batch whose first record has number `first`. Raises UserError for nulls and unequal lists."""
    values, where = _storage(batch, name, place), f"{place}, {name}"
    counts = np.ones(len(values), np.int64)
    _refuse_nulls(values, where, first, counts)
    if column.depth == 2:
        counts = _lengths(values)
        values = _plain(values.flatten())
        _refuse_nulls(values, where, first, counts)
    lengths = _lengths(values)
    flat = _plain(values.flatten())
    width = column.width or int(next(iter(lengths), 0))
    bad = np.flatnonzero(lengths != width)
    if column.context is not None and (len(bad) or (counts != column.context).any()):
        raise UserError(
            f"{place}: {name} has {len(flat):,} numbers in {len(counts)} contexts, expected "
            f"{column.context * width:,} in each, none of them null; cache it again"
        )
    if len(bad):
        raise UserError(
            f"{where}, record {first + _record(counts, bad[0])}: a vector of {lengths[bad[0]]} numbers, but others "
            f"have {width}; a site has one width"
        )
    _refuse_nulls(flat, where, first, counts * width)
    return Vectors(counts, flat.to_numpy(zero_copy_only=False), width)


def read_integers(batch: Any, name: str, counts: np.ndarray | None, place: str, first: int) -> np.ndarray:
    """The integers of a column: one for each record, or with `counts` a list of so many. Raises UserError otherwise."""
    values, where = _storage(batch, name, place), f"{place}, {name}"
    _refuse_nulls(values, where, first, np.ones(len(values), np.int64))
    if counts is not None:
        lengths = _lengths(values)
        bad = np.flatnonzero(lengths != counts)
        if len(bad):
            raise UserError(
                f"{where}, record {first + bad[0]}: {lengths[bad[0]]} numbers, but {counts[bad[0]]} vectors; "
                "each vector needs one"
            )
        values = _plain(values.flatten())
        _refuse_nulls(values, where, first, counts)
    return values.to_numpy(zero_copy_only=False)


def is_integers(kind: Any, depth: int) -> bool:
    """Whether a column holds integers (or booleans) in so many levels of lists."""
    sizes, leaf = nesting(kind)
    return len(sizes) == depth and (pa.types.is_integer(leaf) or pa.types.is_boolean(leaf))


def _storage(batch: Any, name: str, place: str) -> Any:
    if name not in batch.schema.names:
        raise UserError(
            f"{place}: has no column {name!r}, but others have it; its columns are {', '.join(batch.schema.names)}"
        )
    return _plain(batch.column(name))


def _plain(values: Any) -> Any:
    """The lists that carry an array of an extension type, as `datasets` registers them."""
    return values.storage if isinstance(values, pa.ExtensionArray) else values


def _lengths(values: Any) -> np.ndarray:
    lengths: np.ndarray = pc.list_value_length(values).to_numpy(zero_copy_only=False)
    return lengths.astype(np.int64)


def _refuse_nulls(values: Any, where: str, first: int, counts: np.ndarray) -> None:
    """Raise UserError for the record of the first null, given how many values each record has."""
    if values.null_count:
        record = first + _record(counts, pc.index(values.is_null(), True).as_py())
        raise UserError(f"{where}, record {record}: null; take such records out and import again")


def _record(counts: np.ndarray, index: int) -> int:
    """The record that holds a value, given how many values each record has."""
    return int(np.searchsorted(np.cumsum(counts), index, side="right"))
