"""Write a dataset: immutable shards first, the manifest last, so that a half-written dataset does not exist."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors.torch import save

from storage.errors import UserError
from storage.manifest import COLUMNS, MANIFEST, Manifest, Shard, Site, dataset_id
from storage.store import Store

TORCH_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass
class SiteStatistics:
    """Running sums of one site, in float64, over the values as stored (after rounding to the site's dtype)."""

    total: np.ndarray
    squared_norm: float = 0.0
    rows: int = 0

    def add(self, x_BD: torch.Tensor) -> None:
        x = x_BD.double()
        self.total += x.sum(0).numpy()
        self.squared_norm += float((x * x).sum())
        self.rows += len(x)


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
    """Where in the model each site was read, for people."""
    special_token_ids: list[int] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.shard_rows % self.chunk_rows:
            raise UserError(f"shard_rows {self.shard_rows} is not a multiple of chunk_rows {self.chunk_rows}")
        if self.store.exists(MANIFEST):
            raise UserError(f"{self.store.url} already holds a dataset; choose another output or remove it")
        self._pending: list[dict[str, torch.Tensor]] = []
        self._pending_rows = 0
        self._shards: list[Shard] = []
        self._statistics = {name: SiteStatistics(np.zeros(width)) for name, width in self.sites.items()}

    @property
    def rows(self) -> int:
        """Rows given so far."""
        return self._pending_rows + sum(shard.rows for shard in self._shards)

    def add(self, vectors: dict[str, torch.Tensor], columns: dict[str, np.ndarray]) -> None:
        """Append rows: per site a (B, width) tensor, per column of `COLUMNS` a (B) integer array."""
        rows = len(next(iter(vectors.values())))
        tensors = {}
        for name, width in self.sites.items():
            assert vectors[name].shape == (rows, width), (name, vectors[name].shape, (rows, width))
            tensors[name] = vectors[name].detach().to("cpu", TORCH_DTYPES[self.dtype]).contiguous()
            self._statistics[name].add(tensors[name])
        for name in COLUMNS:
            tensors[name] = torch.from_numpy(np.ascontiguousarray(columns[name], dtype=np.int32))
            assert tensors[name].shape == (rows,), (name, tensors[name].shape, rows)
        self._pending.append(tensors)
        self._pending_rows += rows
        while self._pending_rows >= self.shard_rows:
            self._write_shard(self.shard_rows)

    def close(self) -> Manifest:
        """Write the last shard and the manifest. Raises UserError when no row was given."""
        if self._pending_rows:
            self._write_shard(self._pending_rows)
        if not self._shards:
            raise UserError("the dataset would have no rows; check the text and the filters")
        sites = {}
        for name, sums in self._statistics.items():
            sites[name] = Site(
                width=self.sites[name],
                dtype=self.dtype,  # type: ignore[arg-type]
                source=self.sources.get(name, ""),
                mean=(sums.total / sums.rows).tolist(),
                mean_squared_norm=sums.squared_norm / sums.rows,
            )
        manifest = Manifest(
            id="",
            rows=self.rows,
            chunk_rows=self.chunk_rows,
            sites=sites,
            special_token_ids=sorted(self.special_token_ids),
            shards=self._shards,
            provenance=self.provenance,
        )
        manifest = manifest.model_copy(update={"id": dataset_id(manifest)})
        self.store.write(MANIFEST, manifest.model_dump_json(indent=1).encode())
        return manifest

    def discard(self) -> None:
        """Remove the shards written so far, and one that may have been under way; for a dataset that is given up."""
        with suppress(OSError):  # a store that cannot be written to may not let us clean up either
            for number in range(len(self._shards) + 1):
                self.store.delete(_shard_file(number))

    def _write_shard(self, rows: int) -> None:
        merged = {name: torch.cat([part[name] for part in self._pending]) for name in self._pending[0]}
        shard = {name: tensor[:rows].contiguous() for name, tensor in merged.items()}
        rest = {name: tensor[rows:] for name, tensor in merged.items()}
        file = _shard_file(len(self._shards))
        data = save(shard)
        offsets = _tensor_offsets(data)
        self.store.write(file, data)
        view, checksums = memoryview(data), {}
        for name, tensor in shard.items():
            row_bytes = tensor.element_size() * (tensor.shape[1] if tensor.dim() == 2 else 1)
            checksums[name] = [
                chunk_checksum(
                    view[offsets[name] + start * row_bytes :][: min(self.chunk_rows, rows - start) * row_bytes]
                )
                for start in range(0, rows, self.chunk_rows)
            ]
        self._shards.append(Shard(file=file, rows=rows, bytes=len(data), offsets=offsets, checksums=checksums))
        self._pending = [rest] if len(rest["document"]) else []
        self._pending_rows -= rows


def _shard_file(number: int) -> str:
    return f"shards/{number:06d}.safetensors"


def chunk_checksum(data: bytes | memoryview) -> str:
    """xxh3-64 in hex."""
    return str(xxhash.xxh3_64_hexdigest(data))


def _tensor_offsets(data: bytes) -> dict[str, int]:
    """Absolute byte offset of each tensor in a safetensors file: 8 bytes of header length, header, data."""
    header_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    return {name: 8 + header_bytes + entry["data_offsets"][0] for name, entry in header.items()}
