"""Import tables of Arrow or Parquet: a column of vectors is a site, be it an embedding or what SAELens caches.

A record holds one vector, or a document of vectors (a list of lists). SAELens caches contexts, each a document, as
features `Array2D` of shape (context, width), and `token_ids`: it packs texts into contexts, and stores a slice of
positions (`seqpos_slice`) without its offset. Columns called as in `COLUMN_NAMES` hold one integer for each vector.

Legend of shapes: N records, T vectors of a record, B rows of a block, D width of a site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch

from lexray.storage.errors import UserError
from lexray.storage.imports import documents
from lexray.storage.imports.rows import UNKNOWN_TOKEN, ImportOptions, RowBlock, block_rows
from lexray.storage.imports.source import SourceFile, SourceFolder
from lexray.storage.imports.table_columns import (
    check_schemas,
    find_width,
    is_integers,
    read_integers,
    read_vectors,
    vector_columns,
)
from lexray.storage.imports.table_files import PARQUET, find_tables, open_parquet, record_batches, record_count

_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


class TableFolder:
    """The rows of a folder of tables. Raises UserError for tables and columns that do not fit together."""

    def __init__(self, folder: SourceFolder, options: ImportOptions | None = None) -> None:
        options = options or ImportOptions()
        self._files, schema, features = find_tables(folder, options)
        place = str(self._files[0])
        found = vector_columns(schema, features)
        if not found:
            kinds = [f"{name} ({kind})" for name, kind in zip(schema.names[:8], schema.types[:8], strict=True)]
            raise UserError(f"{place}: no column holds vectors of floats; its columns are {', '.join(kinds)}")
        self._chosen = options.names.choose(list(found), str(folder))
        self._vectors = {site: found[old] for site, old in self._chosen.items()}
        self._depth, self._context = self._common_shape(str(folder))
        self._columns = _integer_columns(schema, self._depth, place)
        documents.check_columns(self._columns, place, documents_known=self._depth == 2)
        if self._depth == 2 and options.document_rows is not None:
            raise UserError(
                f"--document-rows: {options.document_rows}, but in {folder} each context is a document; leave it out"
            )
        check_schemas(self._files, [*self._chosen.values(), *self._columns.values()])
        self.widths = {site: find_width(self._files, self._chosen[site], one) for site, one in self._vectors.items()}
        self._vectors = {site: replace(one, width=self.widths[site]) for site, one in self._vectors.items()}
        self.dtypes = {site: _DTYPES[column.dtype] for site, column in self._vectors.items()}
        counts = [self._count(file) for file in self._files]
        self.rows = sum(counts)
        if not self.rows:
            raise UserError(f"{folder}: its {len(self._files)} data files hold 0 rows; there is nothing to import")
        self.files = {site: [file.name for file in self._files] for site in self._chosen}
        self.sources = {site: f"{old} in {self._format} {folder}" for site, old in self._chosen.items()}
        self._document_starts, rule = self._documents(np.cumsum([0, *counts]), options.document_rows)
        self.notes, self.provenance = self._describe(folder, schema, rule)

    def blocks(self) -> Iterator[RowBlock]:
        """All rows in order, some records at a time."""
        names, counter = [*self._chosen.values(), *self._columns.values()], documents.PositionCounter()
        first = row = 0
        for file in self._files:
            inside = 0
            for batch in self._batches(file, names):
                block = self._block(batch, file, first, inside, row, counter)
                inside += batch.num_rows
                row += len(block.columns["document"])
                if len(block.columns["document"]):
                    yield block
            first += inside

    def _block(
        self, batch: Any, file: SourceFile, first: int, inside: int, row: int, counter: documents.PositionCounter
    ) -> RowBlock:
        """The rows of a batch: its file begins with record `first`, the batch with record `inside` of it, row `row`."""
        read = {
            site: read_vectors(batch, self._chosen[site], column, str(file), inside)
            for site, column in self._vectors.items()
        }
        counts = self._common_counts(read, file, inside)
        kept = np.flatnonzero(self._keep(batch, counts, file, inside))
        record = np.repeat(np.arange(len(counts)), counts)
        position = np.arange(len(record)) - np.repeat(np.cumsum(counts) - counts, counts)
        columns = {
            name: read_integers(batch, old, counts if self._depth == 2 else None, str(file), inside)[kept]
            for name, old in self._columns.items()
            if name not in documents.FILTERS
        }
        vectors = {
            site: torch.from_numpy(one.flat.reshape(-1, self.widths[site])[kept].copy()) for site, one in read.items()
        }

        def origin(name: str, row: int) -> str:
            where = f"{file}, {self._chosen.get(name) or self._columns.get(name, name)}"
            number = inside + int(record[kept[row]])
            if self._depth == 1:
                return f"{where}, record {number}"
            return f"{where}, context {number}, position {position[kept[row]]}"

        if self._depth == 1:
            made_up = documents.made_up_columns(self._document_starts, row, row + len(kept))
        else:
            records = first + inside + record[kept]
            made_up = {"token_id": np.full(len(kept), UNKNOWN_TOKEN), "document": records}
            made_up["position"] = counter(records) if "mask" in self._columns else position[kept]
        if "document" in columns and "position" not in columns:
            made_up["position"] = counter(columns["document"])
        return RowBlock(vectors, made_up | columns, origin)

    def _common_shape(self, place: str) -> tuple[int, int | None]:
        """Depth and context of all chosen columns."""
        (first, expected), *others = [(self._chosen[site], column) for site, column in self._vectors.items()]
        for name, column in others:
            if column.depth != expected.depth:
                kinds = ["a vector" if one.depth == 1 else "a list of vectors" for one in (column, expected)]
                raise UserError(
                    f"{place}: a record of {name} holds {kinds[0]}, but of {first} {kinds[1]}; "
                    "choose one kind by --site"
                )
            if column.context != expected.context and None not in (column.context, expected.context):
                raise UserError(
                    f"{place}: {name} has contexts of {column.context} positions, but {first} of {expected.context}; "
                    "each row needs both"
                )
        contexts = {column.context for column in self._vectors.values()}
        return expected.depth, expected.context if len(contexts) == 1 else None

    def _count(self, file: SourceFile) -> int:
        """Rows of a data file. It is read through unless the schema says how many a record has."""
        filtered = any(name in self._columns for name in documents.FILTERS)
        if not filtered and (self._depth == 1 or self._context is not None):
            return record_count(file) * (self._context or 1)
        (site, column), *_ = self._vectors.items()
        names = [self._chosen[site], *(old for name, old in self._columns.items() if name in documents.FILTERS)]
        rows = inside = 0
        for batch in self._batches(file, names):
            counts = read_vectors(batch, self._chosen[site], column, str(file), inside).counts
            rows += int(self._keep(batch, counts, file, inside).sum())
            inside += batch.num_rows
        return rows

    def _batches(self, file: SourceFile, names: list[str]) -> Iterator[Any]:
        """The records of a file, as many at a time as a block holds."""
        rows = block_rows(self)
        outer = self._chosen[next(iter(self._chosen))]
        for batch in record_batches(file, self._records(file, rows), names):
            step = rows
            if self._depth == 2 and batch.num_rows:
                column = batch.column(outer)
                column = getattr(column, "storage", column)
                step = max(1, rows * batch.num_rows // max(1, pc.sum(pc.list_value_length(column)).as_py() or 0))
            for start in range(0, batch.num_rows, step):
                yield batch.slice(start, step)

    def _records(self, file: SourceFile, rows: int) -> int:
        """Records of a Parquet file that hold about so many rows."""
        if self._depth == 1 or file.suffix not in PARQUET:
            return rows
        if self._context is not None:
            return max(1, rows // self._context)
        with open_parquet(file) as parquet:
            groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
            numbers = max((group.column(i).num_values for group in groups for i in range(group.num_columns)), default=0)
            records = max((group.num_rows for group in groups), default=1)
        return max(1, rows * min(self.widths.values()) * records // max(1, numbers))

    def _common_counts(self, read: dict[str, Any], file: SourceFile, inside: int) -> np.ndarray:
        """Vectors of each record (N). Raises UserError for the first record of which two sites differ."""
        (first, expected), *others = read.items()
        for site, vectors in others:
            bad = np.flatnonzero(vectors.counts != expected.counts)
            if len(bad):
                raise UserError(
                    f"{file}, record {inside + bad[0]}: {self._chosen[site]} has {vectors.counts[bad[0]]} vectors, "
                    f"{self._chosen[first]} {expected.counts[bad[0]]}; each row needs both"
                )
        return expected.counts

    def _keep(self, batch: Any, counts: np.ndarray, file: SourceFile, inside: int) -> np.ndarray:
        """Which vectors of a batch are rows (B), bool."""
        rows = int(counts.sum())
        if "mask" in self._columns:
            nested = counts if self._depth == 2 else None
            ends = np.cumsum(counts)
            return documents.kept_by_mask(
                read_integers(batch, self._columns["mask"], nested, str(file), inside),
                lambda row: f"{file}, record {inside + int(np.searchsorted(ends, row, side='right'))}",
            )
        if "lengths" not in self._columns:
            return np.ones(rows, dtype=bool)
        lengths = read_integers(batch, self._columns["lengths"], None, str(file), inside).astype(np.int64)
        documents.check_lengths(lengths, counts, lambda record: f"{file}, record {inside + record}")
        return np.arange(rows) - np.repeat(np.cumsum(counts) - counts, counts) < np.repeat(lengths, counts)

    @property
    def _format(self) -> str:
        return "SAELens cached activations" if self._context is not None else "table of vectors"

    def _documents(self, file_starts: np.ndarray, document_rows: int | None) -> tuple[np.ndarray, str]:
        """First row of each made-up document, and the rule in words."""
        none = np.zeros(1, np.int64)
        if "document" in self._columns:
            if document_rows is not None:
                raise UserError(f"--document-rows: {document_rows}, but there is a column document; leave it out")
            return none, "as the source says"
        if self._depth == 1:
            return documents.made_up_starts(file_starts, document_rows)
        return none, f"one for each context of {self._context} positions" if self._context else "one for each record"

    def _describe(self, folder: SourceFolder, schema: Any, rule: str) -> tuple[list[str], dict[str, Any]]:
        """Notes and provenance."""
        token_ids = "as the source says" if "token_id" in self._columns else f"unknown ({UNKNOWN_TOKEN})"
        notes = [
            f"documents: {rule}",
            f"token ids: {token_ids}; which of them are special is not told, so none is left out when rows are read",
        ]
        used = {*self._chosen.values(), *self._columns.values()}
        unused = [name for name in schema.names if name not in used]
        notes += [f"passed over {len(unused)} columns ({', '.join(unused[:6])})"] if unused else []
        filters = [old for name, old in self._columns.items() if name in documents.FILTERS]
        notes += [f"rows: those that the column {filters[0]} keeps"] if filters else []
        return notes, {
            "format": self._format,
            "folder": str(folder),
            "files": len(self._files),
            "bytes": sum(file.size for file in self._files),
            "sites": self._chosen,
            "documents": rule,
            "token_ids": token_ids,
        }


def _integer_columns(schema: Any, depth: int, place: str) -> dict[str, str]:
    """Name in the table of each column of integers that belongs to vectors of this depth."""
    good = [
        name
        for name, kind in zip(schema.names, schema.types, strict=True)
        if name in documents.COLUMN_NAMES
        and is_integers(kind, 0 if documents.COLUMN_NAMES[name] == "lengths" else depth - 1)
    ]
    return documents.column_names(good, place)
