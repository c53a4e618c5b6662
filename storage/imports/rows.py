"""Import rows that another program stored as a dataset, block by block.

A `RowSource` knows its rows and sites before any is read (`tensors`, `tables`); `import_rows` writes
them with the checks of a harvest. Legend of shapes: B rows of a block, D width of a site.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, get_args

import numpy as np
import torch

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.harvest_file import SITE_NAME
from lexray.storage.imports.array_files import RawFormat
from lexray.storage.manifest import COLUMNS, MANIFEST, Manifest
from lexray.storage.store import Store
from lexray.storage.writer import TORCH_DTYPES, DatasetWriter

BLOCK_BYTES = 16 * 2**20
"""Maximum bytes of a block (at least one row, or one context)."""
SHOWN_FILES = 8
"""Maximum number of a site's files that an overview lists."""
UNKNOWN_TOKEN = -1
"""Token id of rows whose source does not state it."""
Meaning = Literal["rows", "sites"]
"""Whether parallel files or tensors are consecutive rows of the same sites, or one site each."""


class RowBlock(NamedTuple):
    """Consecutive rows of all sites."""

    vectors: dict[str, torch.Tensor]
    """Per site (B, D), in the source's dtype."""
    columns: dict[str, np.ndarray]
    """Per column of `COLUMNS` (B), integers."""
    origin: Callable[[str, int], str]
    """Returns the place in the source of a site's or column's row of this block, for errors."""


class RowSource(Protocol):
    """A source of rows to import."""

    rows: int
    widths: dict[str, int]
    """Width of each site."""
    dtypes: dict[str, torch.dtype]
    """Dtype of each site in the source."""
    sources: dict[str, str]
    """Name of each site in the source."""
    files: dict[str, list[str]]
    """Names of each site's files in the order of its rows."""
    provenance: dict[str, Any]
    notes: list[str]
    """Notes on values that were assumed or left out."""

    def blocks(self) -> Iterator[RowBlock]:
        """Yield all rows in order."""


@dataclass(frozen=True, kw_only=True)
class SiteNames:
    """Selection of a source's tensors as sites, and their names: `NAME` or `NEW=NAME` each; all when empty."""

    wanted: tuple[str, ...] = ()

    def choose(self, found: list[str], place: str) -> dict[str, str]:
        """Return each site's name in the source. Raises UserError for unknown, repeated or invalid names."""
        pairs = [name.partition("=")[::2] for name in self.wanted]
        chosen: dict[str, str] = {}
        for new, old in pairs or [(name.replace("/", "."), name) for name in found]:
            old = old or new
            if old not in found:
                raise UserError(f"--site: {place} has no {old!r}; it has {', '.join(found)}")
            if new in chosen:
                raise UserError(f"--site: {new!r} stands twice; give each site a name of its own (--site NEW={old})")
            check_site_name(new, f"--site NEW={old}", place)
            chosen[new] = old
        return chosen


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `lexray data import`."""

    names: SiteNames = field(default_factory=SiteNames)
    document_rows: int | None = None
    """Rows of a document where the source does not state documents."""
    files: Meaning | None = None
    """Meaning of files in one folder; None: decided by their names, refused where these are ambiguous."""
    lists: Meaning | None = None
    """Meaning of the tensors of a list; None: a list is refused."""
    raw: RawFormat | None = None
    """Format of files that hold raw numbers."""


def meaning(value: str | None, option: str) -> Meaning | None:
    """Parse the value of `--files` or `--lists`. Raises UserError for other values."""
    for known in get_args(Meaning):
        if value == known:
            return known
    if value is not None:
        raise UserError(f"{option}: {value!r} is none of {', '.join(get_args(Meaning))}")
    return None


def check_site_name(name: str, advice: str, place: str) -> None:
    """Raise UserError, with how to rename it, unless `name` is a valid name of a site."""
    if not SITE_NAME.fullmatch(name):
        raise UserError(
            f"{place}: {name!r} cannot name a site (letters, digits, _, - and .); give another name by {advice}"
        )
    if name in COLUMNS:
        raise UserError(f"{place}: {name!r} is the name of a column; give another name by {advice}")


def import_rows(
    source: RowSource,
    url: str,
    *,
    dtype: str | None = None,
    on_start: Callable[[list[str]], None] = lambda lines: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Write a source's rows as the dataset `url`; on any failure all shards are removed.

    `on_start` receives the lines of `overview` before anything is written. `dtype` None keeps the sites' dtype if
    they share one that datasets support, else stores float32. Raises UserError when there is a dataset
    already, or a value is not finite, before or after rounding.
    """
    store = Store.at(url)
    if store.exists(MANIFEST):
        raise UserError(f"output: {store.url} already holds a dataset; choose another output or remove it")
    store.check_writable("output")
    stored = dtype or common_dtype(source.dtypes)
    on_start(overview(source, stored))
    writer = DatasetWriter(
        store=store,
        sites=source.widths,
        dtype=stored,
        sources=_as_utf8(source.sources),
        provenance=_as_utf8({"imported": source.provenance}),
    )
    on_progress(0, source.rows)
    try:
        for block in source.blocks():
            vectors = {site: _as_stored(block, site, writer.dtype) for site in block.vectors}
            columns = {name: _as_int32(block, name) for name in block.columns}
            with _writing(store):
                writer.add(vectors, columns)
            on_progress(writer.rows, source.rows)
        assert writer.rows == source.rows, (writer.rows, source.rows)
        with _writing(store):
            return writer.close()
    except BaseException:
        writer.discard()
        raise


def overview(source: RowSource, dtype: str) -> list[str]:
    """Return one line for each site: rows, width, dtypes, and its first to last file."""
    lines = []
    for site, width in source.widths.items():
        names, found = source.files[site], str(source.dtypes[site]).removeprefix("torch.")
        listed = names if len(names) <= SHOWN_FILES else [*names[: SHOWN_FILES - 2], "...", names[-1]]
        cast = dtype if found == dtype else f"{found} stored as {dtype}"
        files = f"{len(names)} files" if len(names) > 1 else "1 file"
        lines.append(f"site {site}: {source.rows:,} rows x {width:,}, {cast}, {files}: {', '.join(listed)}")
    return lines


def check_dtype(dtype: str | None) -> None:
    """Raise UserError unless datasets can store this dtype (None: the source's own)."""
    if dtype is not None and dtype not in TORCH_DTYPES:
        raise UserError(f"--dtype: {dtype!r} is none of {', '.join(TORCH_DTYPES)}")


def common_dtype(dtypes: dict[str, torch.dtype]) -> str:
    """Return the dtype of all sites if they share one that a dataset can store; else float32."""
    known = {stored: name for name, stored in TORCH_DTYPES.items()}
    kinds = set(dtypes.values())
    return known.get(next(iter(kinds)), "float32") if len(kinds) == 1 else "float32"


def block_rows(source: RowSource) -> int:
    """Return the number of rows of a block of all sites."""
    row_bytes = sum(width * source.dtypes[site].itemsize for site, width in source.widths.items())
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def _as_stored(block: RowBlock, site: str, dtype: str) -> torch.Tensor:
    """Convert a site's rows to the dataset's dtype. Raises UserError when a value is not finite, before or after."""
    x_BD = block.vectors[site]
    bad = (~torch.isfinite(x_BD).all(1)).nonzero().flatten().tolist()
    if bad:
        more = f" ({len(bad)} of the {len(x_BD)} rows from {block.origin(site, 0)} on)"
        raise UserError(f"{block.origin(site, bad[0])}: NaN or Inf{more}; take such rows out and import again")
    stored = x_BD.to(TORCH_DTYPES[dtype])
    bad = (~torch.isfinite(stored).all(1)).nonzero().flatten().tolist()
    if bad:
        advice = "use bfloat16" if dtype == "float16" else "scale the rows down"
        largest, limit = float(x_BD[bad[0]].abs().max()), torch.finfo(stored.dtype).max
        raise UserError(
            f"{block.origin(site, bad[0])}: a value of {largest:.4g}, but --dtype {dtype} ends at {limit:.4g}; {advice}"
        )
    return stored


def _as_utf8(names: dict[str, Any]) -> dict[str, Any]:
    """Replace bytes that are not UTF-8 by `?`: names of files may be any bytes."""
    return json.loads(json.dumps(names, ensure_ascii=False).encode("utf-8", "replace"))


def _as_int32(block: RowBlock, name: str) -> np.ndarray:
    column, limits = block.columns[name], np.iinfo(np.int32)
    bad = np.flatnonzero((column < limits.min) | (column > limits.max))
    if len(bad):
        raise UserError(
            f"{block.origin(name, int(bad[0]))}: {name} {column[bad[0]]}, but a dataset ends at {limits.max}; "
            "number them anew"
        )
    return column.astype(np.int32)


def _writing(store: Store) -> AbstractContextManager[None]:
    def message(error: Exception) -> str:
        return f"output: cannot write to {store.url} ({one_line(error)}); choose another place"

    return as_user_error(message, OSError)
