"""Import a folder of `.npy`, `.pt` and `.safetensors` files, each a run of rows, in the order of their names.

Two layouts: files side by side, where a tensor's name is its site's; or a sub-folder for each site, whose files hold
one tensor each. Tensors called `token_id` (or `token_ids`), `position` and `document` are columns: one integer per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from lexray.storage.errors import UserError
from lexray.storage.imports.rows import UNKNOWN_TOKEN, Block, SiteNames, block_rows, check_site_name
from lexray.storage.imports.source import SourceFolder
from lexray.storage.imports.tensor_files import UNNAMED, open_tensor_file
from lexray.storage.imports.tensor_series import Opener, check_aligned, check_parts, find_series, widest

COLUMN_NAMES = {"token_id": "token_id", "token_ids": "token_id", "position": "position", "document": "document"}
FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)
DOCUMENT_ROWS = 256
"""Rows of a made-up document where files are few."""
MANY_FILES = 20
"""From this number of files on, each counts as a document: then a share of 5 % is at least one."""
_OPEN_FILES = 64
_OPEN_COPIES = 2
"""Of each site: a block may begin in one file and end in the next."""


class TensorFolder:
    """The rows of a folder. Raises UserError for files and tensors that do not fit together."""

    def __init__(self, folder: SourceFolder, names: SiteNames, document_rows: int | None = None) -> None:
        open_files = _OPEN_FILES if folder.store.local_path is not None else _OPEN_COPIES

        def new_opener() -> Opener:
            return lru_cache(maxsize=open_files)(open_tensor_file)

        found, self.notes = find_series(folder, new_opener)
        self._columns = {COLUMN_NAMES[name]: series for name, series in found.items() if name in COLUMN_NAMES}
        chosen = _choose(folder, [name for name in found if name not in COLUMN_NAMES], names)
        self._sites = {new: found[old] for new, old in chosen.items()}
        for site, series in self._sites.items():
            check_parts(series, site, ndim=2, dtypes=FLOATS)
        for column, series in self._columns.items():
            check_parts(series, column, ndim=1, dtypes=INTEGERS)
        self.rows = check_aligned(self._sites | self._columns)
        self.widths = {site: series.parts[0].facts.shape[1] for site, series in self._sites.items()}
        self.dtypes = {site: widest(series.dtypes) for site, series in self._sites.items()}
        self.sources = {site: f"{chosen[site] or 'tensor'} in {folder}" for site in chosen}
        self._document_starts, rule = self._made_up_documents(document_rows)
        self.provenance = self._describe(folder, chosen, rule)

    def blocks(self) -> Iterator[Block]:
        """All rows in order, a few MB at a time."""
        row_bytes = sum(width * self.dtypes[site].itemsize for site, width in self.widths.items())
        step, count = block_rows(row_bytes), _PositionCounter()
        for start in range(0, self.rows, step):
            stop = min(start + step, self.rows)
            given = {name: column.read(start, stop).numpy() for name, column in self._columns.items()}
            columns = self._made_up(start, stop) | given
            if "document" in given and "position" not in given:
                columns["position"] = count(given["document"])
            vectors = {site: of_site.read(start, stop) for site, of_site in self._sites.items()}
            yield Block(vectors, columns, self._origin(start))

    def _origin(self, start: int) -> Callable[[str, int], str]:
        """Place in the files of a row counted from `start`; made-up columns have none."""
        series = self._sites | self._columns
        return lambda name, row: series[name].place(start + row)

    def _made_up(self, start: int, stop: int) -> dict[str, np.ndarray]:
        rows = np.arange(start, stop)
        document = np.searchsorted(self._document_starts, rows, side="right") - 1
        position = rows - self._document_starts[document]
        return {"token_id": np.full(len(rows), UNKNOWN_TOKEN), "position": position, "document": document}

    def _made_up_documents(self, document_rows: int | None) -> tuple[np.ndarray, str]:
        """First row of each document, and the rule in words; files of the first site are not crossed."""
        if "document" in self._columns:
            if document_rows is not None:
                raise UserError(
                    f"--document-rows: {document_rows}, but the source has documents of its own; leave it out"
                )
            return np.zeros(1, np.int64), "as the source says"
        starts = next(iter(self._sites.values())).starts
        files = len(starts) - 1
        if document_rows is None and files >= MANY_FILES:
            return np.unique(starts[:-1]), f"one for each of {files} files"
        step = document_rows or DOCUMENT_ROWS
        pieces = [np.arange(start, stop, step) for start, stop in pairwise(starts)]
        return np.concatenate(pieces), f"of {step} rows each, a new one with each file"

    def _describe(self, folder: SourceFolder, chosen: dict[str, str], rule: str) -> dict[str, Any]:
        token_ids = "as the source says" if "token_id" in self._columns else f"unknown ({UNKNOWN_TOKEN})"
        self.notes += [f"documents: {rule}", f"token ids: {token_ids}"]
        files = {part.file for series in (self._sites | self._columns).values() for part in series.parts}
        return {
            "format": "tensor files",
            "folder": str(folder),
            "files": len(files),
            "bytes": sum(file.size for file in files),
            "sites": {site: old or "the only tensor of each file" for site, old in chosen.items()},
            "documents": rule,
            "token_ids": token_ids,
        }


class _PositionCounter:
    """Positions inside documents that are told row by row, over blocks."""

    def __init__(self) -> None:
        self._document: int | None = None
        self._next = 0

    def __call__(self, document: np.ndarray) -> np.ndarray:
        """(B) numbers of documents as (B) positions: 0 wherever the number changes."""
        rows = np.arange(len(document))
        begins = np.concatenate([[document[0] != self._document], document[1:] != document[:-1]])
        last_begin = np.maximum.accumulate(np.where(begins, rows, -1))
        positions = np.where(last_begin < 0, self._next + rows, rows - last_begin)
        self._document, self._next = int(document[-1]), int(positions[-1]) + 1
        return positions


def _choose(folder: SourceFolder, found: list[str], names: SiteNames) -> dict[str, str]:
    """Name in the source of each site; a tensor without a name is called by `--site NAME`, else as its folder."""
    if found != [UNNAMED]:
        if not found:
            raise UserError(f"{folder}: its files hold columns but no site; each site is a tensor of rows x width")
        return names.choose(found, str(folder))
    if len(names.wanted) > 1:
        raise UserError(f"--site: {len(names.wanted)} names, but {folder} holds 1 tensor in each file; give 1 name")
    name = names.wanted[0] if names.wanted else folder.name
    check_site_name(name, "--site NAME")
    return {name: UNNAMED}
