"""A generated dataset as every other part of lexray sees it: a manifest and a reader of chunks.

The manifest is made by formula; its statistics are those of a sample. Chunks have no checksums: their bytes never lie
where they could be damaged, and computing 200 million rows to know them would be all the work. Nor are they kept in a
cache on disk. Reading the column of norms generates every row; a selection does so only where `max_norm_ratio` is
below the largest norm of the sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch

from lexray.storage.manifest import Manifest, Shard, Site, columns_of
from lexray.storage.reader import DatasetReader
from lexray.storage.site_statistics import QUANTILE_LEVELS, exact_quantiles, site_sums
from lexray.storage.synthetic.rows import RowGenerator
from lexray.storage.synthetic_url import CHUNK_ROWS, VERSION, Synthetic, parse

SITE = "site"
SAMPLE_CHUNKS = 8
"""Chunks of the sample for the manifest's statistics. Its rows are of no dataset, and the same for every row seed."""


def generated_manifest(url: str) -> Manifest:
    """Return the manifest of a generated dataset. Its features are made on first use in a process: seconds for 16k."""
    return _manifest(parse(url))


@lru_cache(maxsize=8)
def _manifest(dataset: Synthetic) -> Manifest:
    generator = RowGenerator(dataset)
    origin = {
        "generator": {
            "name": dataset.name,
            "version": VERSION,
            "seed": dataset.seed,
            **asdict(dataset.parameters),
            "features_digest": generator.features.digest,
            "statistics_from_rows": SAMPLE_CHUNKS * CHUNK_ROWS,
        }
    }
    content = json.dumps({**origin, "rows": dataset.rows}, sort_keys=True)
    row_bytes = 4 * dataset.parameters.width
    shard = Shard(
        file="shards/000000.safetensors", rows=dataset.rows, bytes=dataset.rows * row_bytes, offsets={}, checksums={}
    )
    return Manifest(
        id=hashlib.sha256(content.encode()).hexdigest()[:16],
        rows=dataset.rows,
        chunk_rows=CHUNK_ROWS,
        sites={SITE: _site(dataset)},
        columns=columns_of([SITE]),
        shards=[shard],
        provenance=origin,
    )


def _site(dataset: Synthetic) -> Site:
    sample = RowGenerator(dataset, purpose="statistics")
    rows_ND = torch.from_numpy(np.concatenate([sample.chunk(number) for number in range(SAMPLE_CHUNKS)]))
    sums = site_sums(rows_ND, CHUNK_ROWS)
    quantiles = exact_quantiles(lambda: [sums.norms], QUANTILE_LEVELS)
    return Site(
        width=dataset.parameters.width,
        dtype="float32",
        source=f"{dataset.name}: generated rows; statistics of a sample of {len(rows_ND):,}",
        mean=(sums.total / len(rows_ND)).tolist(),
        mean_squared_norm=sums.squared_norm / len(rows_ND),
        norm_quantiles={f"{level:g}": value for level, value in zip(QUANTILE_LEVELS, quantiles, strict=True)},
    )


@dataclass(frozen=True)
class GeneratedReader(DatasetReader):
    """Reads chunks by generating them. A document is a chunk, a position a row's place in it, and tokens are 0."""

    is_generated = True

    @cached_property
    def generator(self) -> RowGenerator:
        return _generator(parse(self.store.url))

    def read_chunk(self, chunk: int, tensor: str, out: np.ndarray | None = None) -> np.ndarray:
        rows = self._generated(chunk, tensor)
        if out is None:
            return rows
        out[:] = rows
        return out

    def column_parts(self, column: str) -> Iterator[np.ndarray]:
        """Yield a column, one array per chunk; a column that is constant in a chunk as a view of one value."""
        yield from (self._generated(chunk, column) for chunk in range(len(self.chunks)))

    def _generated(self, chunk: int, tensor: str) -> np.ndarray:
        rows = self.chunks[chunk].rows
        if tensor == "document":
            return np.broadcast_to(np.int32(chunk), rows)
        if tensor == "token_id":
            return np.broadcast_to(np.int32(0), rows)
        if tensor == "position":
            return np.arange(rows, dtype=np.int32)
        x_BD = self.generator.chunk(chunk)[:rows]
        return x_BD if tensor in self.manifest.sites else np.linalg.norm(x_BD.astype(np.float64), axis=1).astype("f4")


@lru_cache(maxsize=8)
def _generator(dataset: Synthetic) -> RowGenerator:
    """Return the generator that the streams of a process share."""
    return RowGenerator(dataset)
