"""Small datasets with known rows, for the tests of every floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lexray.storage.manifest import Manifest
from lexray.storage.store import Store
from lexray.storage.writer import TORCH_DTYPES, DatasetWriter

SPECIAL_TOKEN = 0


@dataclass(frozen=True)
class Written:
    """A dataset on disk and what was written into it."""

    store: Store
    manifest: Manifest
    vectors: dict[str, torch.Tensor]
    """Per site (rows, width), rounded to the stored dtype."""
    columns: dict[str, np.ndarray]

    @property
    def rows(self) -> int:
        return self.manifest.rows


def read_into(store: Store, path: str, start: int, length: int) -> bytes:
    """What `Store.read_range_into` puts into room for so many bytes."""
    out = memoryview(bytearray(length))
    return bytes(out[: store.read_range_into(path, start, out)])


def write_rows(
    place: Path | str | Store,
    rows: int | Sequence[int] = 200,
    *,
    sites: Mapping[str, int] | None = None,
    vectors: Mapping[str, torch.Tensor] | None = None,
    dtype: str = "bfloat16",
    chunk_rows: int = 8,
    rows_per_document: int = 10,
    document: np.ndarray | None = None,
    special: np.ndarray | None = None,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
) -> Written:
    """Write a dataset of `rows` rows in one shard, or of one shard for each number in `rows`.

    Without `vectors` the values are random, for site `x` of width 4 when `sites` does not say otherwise. `document`
    numbers each row's document, in place of equally long ones; `special` marks the rows that carry the special token.
    """
    shard_rows = [rows] if isinstance(rows, int) else list(rows)
    total = sum(shard_rows)
    if vectors is None:
        generator = torch.Generator().manual_seed(seed)
        vectors = {name: torch.randn(total, width, generator=generator) for name, width in (sites or {"x": 4}).items()}
    row = np.arange(total, dtype=np.int32)
    columns = {"token_id": 1 + row % 50, "position": row % rows_per_document, "document": row // rows_per_document}
    if document is not None:
        columns["document"] = document.astype(np.int32)
    if special is not None:
        columns["token_id"] = np.where(special, SPECIAL_TOKEN, columns["token_id"]).astype(np.int32)
    store = place if isinstance(place, Store) else Store.at(str(place))
    writer = DatasetWriter(
        store=store,
        sites={name: values.shape[1] for name, values in vectors.items()},
        dtype=dtype,
        chunk_rows=chunk_rows,
        shard_rows=chunk_rows * (total + 1),
        special_token_ids=[SPECIAL_TOKEN],
        provenance=provenance or {},
    )
    start = 0
    for count in shard_rows:
        part = slice(start, start + count)
        writer.add(
            {name: values[part] for name, values in vectors.items()}, {name: c[part] for name, c in columns.items()}
        )
        writer._write_shard(count)  # the format allows shards of any sizes, the writer fills all but the last
        start += count
    stored = {name: values.to(TORCH_DTYPES[dtype]) for name, values in vectors.items()}
    return Written(store, writer.close(), stored, columns)
