"""Import a folder of files of tensors: `.npy`, `.npz`, `.pt`, `.pth`, `.safetensors`, or raw numbers.

Two layouts: files side by side; or a sub-folder for each site, whose files hold one tensor each. Tensors are rows x
width, or documents x tokens x width. Tensors called as in `COLUMN_NAMES` are columns: one integer per row.

Legend of shapes: B rows of a block, D width of a site.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from lexray.storage.errors import UserError
from lexray.storage.imports import documents
from lexray.storage.imports.rows import UNKNOWN_TOKEN, ImportOptions, RowBlock, block_rows, check_site_name
from lexray.storage.imports.source import SourceFolder
from lexray.storage.imports.stored_tensor import UNNAMED
from lexray.storage.imports.tensor_files import OPEN_COPIES, Opener
from lexray.storage.imports.tensor_layout import find_series
from lexray.storage.imports.tensor_series import FLOATS, INTEGERS, Series, check_paired, check_parts, widest

_OPEN_FILES = 64
_MASK_ROWS = 2**20
"""Rows of a mask that are counted at once."""


class TensorFolder:
    """The rows of a folder. Raises UserError for files and tensors that do not fit together."""

    def __init__(self, folder: SourceFolder, options: ImportOptions | None = None) -> None:
        options = options or ImportOptions()
        max_open = _OPEN_FILES if folder.store.local_path is not None else OPEN_COPIES
        found, by_name, self.notes = find_series(folder, lambda: Opener(options.raw, max_open), options)
        columns = documents.column_names(found, str(folder))
        chosen = _choose(folder, [name for name in found if name not in columns.values()], options)
        lead = 2 if len(found[next(iter(chosen.values()))].parts[0].facts.shape) == 3 else 1
        self._sites = {new: replace(found[old], lead=lead) for new, old in chosen.items()}
        self._columns = {
            column: replace(found[old], lead=1 if column == "lengths" else lead) for column, old in columns.items()
        }
        documents.check_columns(self._columns, str(folder), documents_known=lead == 2)
        _check_series(self._sites, self._columns, found, chosen, options)
        of_rows = self._sites | {name: one for name, one in self._columns.items() if name != "lengths"}
        self._stored_rows = check_paired(of_rows, by_name=by_name)
        self.widths = {site: series.parts[0].facts.shape[-1] for site, series in self._sites.items()}
        self.dtypes = {
            site: widest([part.facts.dtype for part in series.parts]) for site, series in self._sites.items()
        }
        self.files = {site: [file.name for file in series.files] for site, series in self._sites.items()}
        self.sources = {site: f"{chosen[site] or 'tensor'} in {folder}" for site in chosen}
        self._document_starts, rule = self._documents(options.document_rows)
        self._lengths = self._read_lengths()
        self.rows = self._count_rows()
        self.provenance = self._describe(folder, chosen, rule)

    def blocks(self) -> Iterator[RowBlock]:
        """All rows in order, a few MB at a time."""
        step, count = block_rows(self), documents.PositionCounter()
        for start in range(0, self._stored_rows, step):
            stop = min(start + step, self._stored_rows)
            kept = np.flatnonzero(self._keep(start, stop))
            if not len(kept):
                continue
            columns = {name: column[kept] for name, column in self._all_columns(start, stop).items()}
            if "position" not in self._columns and ("mask" in self._columns or "document" in self._columns):
                columns["position"] = count(columns["document"])
            vectors = {site: of_site.read(start, stop) for site, of_site in self._sites.items()}
            if len(kept) < stop - start:
                vectors = {site: x_BD[torch.from_numpy(kept)] for site, x_BD in vectors.items()}
            yield RowBlock(vectors, columns, partial(self._origin, start, kept))

    def _all_columns(self, start: int, stop: int) -> dict[str, np.ndarray]:
        """Columns of the stored rows from `start` up to `stop`, as the source gives them, else made up."""
        kept = {name: one for name, one in self._columns.items() if name not in documents.FILTERS}
        given = {name: one.read(start, stop).numpy() for name, one in kept.items()}
        return documents.made_up_columns(self._document_starts, start, stop) | given

    def _origin(self, start: int, kept: np.ndarray, name: str, row: int) -> str:
        """Place in the files of a row of a block; made-up columns have none."""
        return (self._sites | self._columns)[name].place(start + int(kept[row]))

    def _documents(self, document_rows: int | None) -> tuple[np.ndarray, str]:
        """First row of each document, and the rule in words; files of the first site are not crossed."""
        first = next(iter(self._sites.values()))
        structured = "document" in self._columns or first.lead == 2
        if structured and document_rows is not None:
            raise UserError(f"--document-rows: {document_rows}, but the source has documents of its own; leave it out")
        if first.lead == 2:
            starts = first.document_starts
            made_up = f"{len(starts):,}, one for each first index of the tensors (documents x tokens x width)"
            return starts, "as the source says" if "document" in self._columns else made_up
        if structured:
            return np.zeros(1, np.int64), "as the source says"
        return documents.made_up_starts(first.starts, document_rows)

    def _read_lengths(self) -> np.ndarray | None:
        """Tokens of each document, where the source says them. Raises UserError for impossible ones."""
        if "lengths" not in self._columns:
            return None
        column, first = self._columns["lengths"], next(iter(self._sites.values()))
        count, name = len(self._document_starts), column.parts[0].file
        if column.rows != count:
            raise UserError(
                f"{name}: lengths of {column.rows:,} documents, but the sites have {count:,}; store one each"
            )
        lengths = column.read(0, column.rows).numpy().astype(np.int64)
        tokens = np.diff([*self._document_starts, first.rows])
        documents.check_lengths(lengths, tokens, lambda document: f"{name}, document {document}")
        return lengths

    def _keep(self, start: int, stop: int) -> np.ndarray:
        """Which of the stored rows from `start` up to `stop` belong to a document (B), bool."""
        if self._lengths is not None:
            made_up = documents.made_up_columns(self._document_starts, start, stop)
            return made_up["position"] < self._lengths[made_up["document"]]
        if "mask" not in self._columns:
            return np.ones(stop - start, dtype=bool)
        mask = self._columns["mask"]
        return documents.kept_by_mask(mask.read(start, stop).numpy(), lambda row: mask.place(start + row))

    def _count_rows(self) -> int:
        """Rows that belong to a document."""
        if self._lengths is None and "mask" not in self._columns:
            return self._stored_rows
        starts = range(0, self._stored_rows, _MASK_ROWS)
        rows = sum(int(self._keep(start, min(start + _MASK_ROWS, self._stored_rows)).sum()) for start in starts)
        name = "lengths" if self._lengths is not None else "mask"
        self.notes.append(f"rows: {rows:,} of {self._stored_rows:,} stored ones, by the column {name}")
        if not rows:
            raise UserError(f"{self._columns[name].parts[0].file}: its {name} keep 0 of {self._stored_rows:,} rows")
        return rows

    def _describe(self, folder: SourceFolder, chosen: dict[str, str], rule: str) -> dict[str, Any]:
        token_ids = "as the source says" if "token_id" in self._columns else f"unknown ({UNKNOWN_TOKEN})"
        self.notes += [f"documents: {rule}", f"token ids: {token_ids}"]
        files = {file for series in (self._sites | self._columns).values() for file in series.files}
        return {
            "format": "tensor files",
            "folder": str(folder),
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "sites": {site: old or "the only tensor of each file" for site, old in chosen.items()},
            "documents": rule,
            "token_ids": token_ids,
        }


def _check_series(
    sites: dict[str, Series],
    columns: dict[str, Series],
    found: dict[str, Series],
    chosen: dict[str, str],
    options: ImportOptions,
) -> None:
    """Raise UserError for the first tensor that is no rows of a site, or no column, as it should be."""
    for site, series in sites.items():
        good = [name for name, one in found.items() if name != chosen[site] and name and _looks_like_site(one)]
        others = " ".join(f"--site {name}" for name in good)
        advice = f", or leave it out by {others}" if others and not options.names.wanted else ""
        check_parts(series, site, ndim=series.lead + 1, dtypes=FLOATS, advice=advice)
    for column, series in columns.items():
        check_parts(series, column, ndim=series.lead, dtypes=INTEGERS)


def _looks_like_site(series: Series) -> bool:
    facts = series.parts[0].facts
    return len(facts.shape) in (2, 3) and facts.dtype in FLOATS and not facts.problem


def _choose(folder: SourceFolder, found: list[str], options: ImportOptions) -> dict[str, str]:
    """Name in the source of each site; a tensor without a name is called by `--site NAME`, else as its folder."""
    if found != [UNNAMED]:
        if not found:
            raise UserError(f"{folder}: its files hold columns but no site; each site is a tensor of rows x width")
        return options.names.choose(found, str(folder))
    wanted = options.names.wanted
    if len(wanted) > 1:
        raise UserError(f"--site: {len(wanted)} names, but {folder} holds 1 tensor in each file; give 1 name")
    name = wanted[0] if wanted else folder.name
    check_site_name(name, "--site NAME", str(folder))
    return {name: UNNAMED}
