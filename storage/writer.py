"""Write a dataset: immutable shards first, the manifest last, so that a half-written dataset does not exist."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from lexray.storage.errors import UserError
from lexray.storage.manifest import (
    COLUMNS,
    MANIFEST,
    Frozen,
    Manifest,
    Shard,
    Site,
    chunk_checksum,
    columns_of,
    dataset_id,
    norm_column,
)
from lexray.storage.reader import DatasetReader
from lexray.storage.site_statistics import QUANTILE_LEVELS, exact_quantiles, site_sums
from lexray.storage.store import Store

Vectors = Mapping[str, torch.Tensor]
"""Per site a (B, width) tensor."""
Columns = Mapping[str, np.ndarray]
"""Per column of `COLUMNS` a (B) integer array."""
TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class WrittenShard(Frozen):
    """A stored shard with its sums, from which the manifest is made."""

    shard: Shard
    totals: dict[str, list[float]]
    """Per site, the sum of the rows (width)."""
    squared_norms: dict[str, float]
    """Per site, the sum of the rows' squared Euclidean norms."""


@dataclass(frozen=True, kw_only=True)
class ShardFormat:
    """Storage format of rows, the same for all shards of a dataset."""

    sites: dict[str, int]
    """Width of each site."""
    dtype: str = "bfloat16"
    chunk_rows: int = 1024

    def write(self, store: Store, number: int, vectors: Vectors, columns: Columns) -> WrittenShard:
        """Write shard `number`: per site a (B, width) tensor, per column of `COLUMNS` a (B) integer array."""
        tensors = self.tensors(vectors, columns)
        sums = {name: site_sums(tensors[name], self.chunk_rows) for name in self.sites}
        tensors |= {norm_column(name): torch.from_numpy(part.norms) for name, part in sums.items()}
        data = save(tensors)
        store.write(shard_file(number), data)
        return WrittenShard(
            shard=self._describe(number, tensors, data),
            totals={name: part.total.tolist() for name, part in sums.items()},
            squared_norms={name: part.squared_norm for name, part in sums.items()},
        )

    def tensors(self, vectors: Vectors, columns: Columns) -> dict[str, torch.Tensor]:
        """Return the rows as they are stored: the tensor of each site (B, width) and column (B)."""
        rows, tensors = len(columns["document"]), {}
        for name, width in self.sites.items():
            assert vectors[name].shape == (rows, width), (name, vectors[name].shape, (rows, width))
            tensors[name] = vectors[name].detach().to("cpu", TORCH_DTYPES[self.dtype]).contiguous()
        for name in COLUMNS:
            tensors[name] = torch.from_numpy(np.ascontiguousarray(columns[name], dtype=np.int32))
            assert tensors[name].shape == (rows,), (name, tensors[name].shape, rows)
        return tensors

    def _describe(self, number: int, tensors: dict[str, torch.Tensor], data: bytes) -> Shard:
        offsets, checksums, view, rows = tensor_offsets(data), {}, memoryview(data), len(tensors["document"])
        for name, offset in offsets.items():
            row_bytes = tensors[name].itemsize * tensors[name].shape[1:].numel()
            checksums[name] = [
                chunk_checksum(view[offset + start * row_bytes :][: min(self.chunk_rows, rows - start) * row_bytes])
                for start in range(0, rows, self.chunk_rows)
            ]
        return Shard(file=shard_file(number), rows=rows, bytes=len(data), offsets=offsets, checksums=checksums)


def write_manifest(
    store: Store,
    shard_format: ShardFormat,
    written: Sequence[WrittenShard],
    *,
    sources: Mapping[str, str],
    special_token_ids: Sequence[int] = (),
    provenance: Mapping[str, Any],
) -> Manifest:
    """Write the manifest of the written shards; norms are read back for quantiles. Raises UserError without rows."""
    rows = sum(part.shard.rows for part in written)
    if not rows:
        raise UserError("the dataset would have no rows; check the text and the filters")
    sites = {}
    for name, width in shard_format.sites.items():
        total = np.sum([part.totals[name] for part in written], axis=0)
        sites[name] = Site(
            width=width,
            dtype=shard_format.dtype,  # type: ignore[arg-type]
            source=sources.get(name, ""),
            mean=(total / rows).tolist(),
            mean_squared_norm=sum(part.squared_norms[name] for part in written) / rows,
            norm_quantiles={},
        )
    manifest = Manifest(
        id="",
        rows=rows,
        chunk_rows=shard_format.chunk_rows,
        sites=sites,
        columns=columns_of(sites),
        special_token_ids=sorted(special_token_ids),
        shards=[part.shard for part in written],
        provenance=dict(provenance),
    )
    reader = DatasetReader(store, manifest)
    for name, site in sites.items():
        sites[name] = site.model_copy(update={"norm_quantiles": norm_quantiles(reader, name)})
    manifest = manifest.model_copy(update={"sites": sites})
    manifest = manifest.model_copy(update={"id": dataset_id(manifest)})
    store.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
    return manifest


def norm_quantiles(reader: DatasetReader, site: str) -> dict[str, float]:
    """Return the quantiles of a site's stored norms, by level."""
    found = exact_quantiles(lambda: reader.column_parts(norm_column(site)), QUANTILE_LEVELS)
    return {f"{level:g}": value for level, value in zip(QUANTILE_LEVELS, found, strict=True)}


@dataclass(kw_only=True)
class DatasetWriter:
    """Collects rows and writes them in shards of `shard_rows`; `close` writes the manifest.

    Rows are stored in the order given. The shards are named by their number; a folder that already holds a manifest
    is refused, since datasets are immutable.
    """

    store: Store
    sites: dict[str, int]
    """Width of each site."""
    dtype: str = "bfloat16"
    chunk_rows: int = 1024
    shard_rows: int = 65_536
    sources: dict[str, str] = field(default_factory=dict)
    """Description of the place in the model at which each site was read."""
    special_token_ids: list[int] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shard_rows % self.chunk_rows:
            raise UserError(f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}")
        if self.store.exists(MANIFEST):
            raise UserError(f"{self.store.url} already holds a dataset; choose another output or remove it")
        self._format = ShardFormat(sites=self.sites, dtype=self.dtype, chunk_rows=self.chunk_rows)
        self._pending: list[dict[str, torch.Tensor]] = []
        self._pending_rows = 0
        self._written: list[WrittenShard] = []

    @property
    def rows(self) -> int:
        """Number of rows added so far."""
        return self._pending_rows + sum(part.shard.rows for part in self._written)

    def add(self, vectors: Vectors, columns: Columns) -> None:
        """Append rows: per site a (B, width) tensor, per column of `COLUMNS` a (B) integer array."""
        self._pending.append(self._format.tensors(vectors, columns))
        self._pending_rows += len(columns["document"])
        while self._pending_rows >= self.shard_rows:
            self._write_shard(self.shard_rows)

    def close(self) -> Manifest:
        """Write the last shard and the manifest. Raises UserError when no row was added."""
        if self._pending_rows:
            self._write_shard(self._pending_rows)
        return write_manifest(
            self.store,
            self._format,
            self._written,
            sources=self.sources,
            special_token_ids=self.special_token_ids,
            provenance=self.provenance,
        )

    def discard(self) -> None:
        """Remove the shards written so far, including a partial one, of an abandoned dataset."""
        with suppress(OSError):  # a store that is not writable may not allow deletion either
            for number in range(len(self._written) + 1):
                self.store.delete(shard_file(number))

    def _write_shard(self, rows: int) -> None:
        merged = {name: torch.cat([part[name] for part in self._pending]) for name in self._pending[0]}
        shard = {name: tensor[:rows] for name, tensor in merged.items()}
        rest = {name: tensor[rows:] for name, tensor in merged.items()}
        columns = {name: shard[name].numpy() for name in COLUMNS}
        self._written.append(self._format.write(self.store, len(self._written), shard, columns))
        self._pending = [rest] if len(rest["document"]) else []
        self._pending_rows -= rows


def shard_file(number: int) -> str:
    return f"shards/{number:06d}.safetensors"


def tensor_offsets(data: bytes) -> dict[str, int]:
    """Return the absolute byte offset of each tensor in a safetensors file: 8 bytes of header length, header, data."""
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    return {name: 8 + header_bytes + entry["data_offsets"][0] for name, entry in header.items()}
