"""Read a dataset's chunks: one ranged read each, verified against the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from storage.errors import CorruptDataError
from storage.manifest import ITEM_BYTES, Manifest, check_chunk, chunk_checksum
from storage.store import Store

# bfloat16 is unknown to numpy: it travels as uint16 and is viewed back by torch.
NUMPY_DTYPES = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32, "int32": np.int32}


@dataclass(frozen=True)
class ChunkPlace:
    """Where a chunk lies: shard number, number of the chunk inside it, its rows."""

    shard: int
    index: int
    rows: int
    first_row: int
    """Number of its first row in the dataset."""


@dataclass(frozen=True)
class DatasetReader:
    """Chunks of a dataset by their number, counted over all shards in the manifest's order."""

    store: Store
    manifest: Manifest

    @cached_property
    def chunks(self) -> list[ChunkPlace]:
        places, first_row = [], 0
        for number, shard in enumerate(self.manifest.shards):
            for index, start in enumerate(range(0, shard.rows, self.manifest.chunk_rows)):
                rows = min(self.manifest.chunk_rows, shard.rows - start)
                places.append(ChunkPlace(number, index, rows, first_row + start))
            first_row += shard.rows
        return places

    def read_chunk(self, chunk: int, tensor: str) -> np.ndarray:
        """One chunk of a site (rows, width) or a column (rows). Raises CorruptDataError naming the shard."""
        place = self.chunks[chunk]
        shard = self.manifest.shards[place.shard]
        row_bytes = self.manifest.row_bytes(tensor)
        start = shard.offsets[tensor] + place.index * self.manifest.chunk_rows * row_bytes
        data = self.store.read_range(shard.file, start, place.rows * row_bytes)
        if len(data) != place.rows * row_bytes:
            raise CorruptDataError(
                f"shard {shard.file}, {tensor}, chunk {place.index}: {len(data)} bytes, "
                f"expected {place.rows * row_bytes}"
            )
        check_chunk(
            chunk_checksum(data),
            shard.checksums[tensor][place.index],
            file=shard.file,
            tensor=tensor,
            chunk=place.index,
        )
        return self._as_array(data, tensor)

    def read_column(self, column: str) -> list[np.ndarray]:
        """A whole column, one array per chunk."""
        return list(self.column_parts(column))

    def column_parts(self, column: str) -> Iterator[np.ndarray]:
        """A whole column, one array per chunk, by one ranged read per shard."""
        for shard in self.manifest.shards:
            item_bytes = ITEM_BYTES[self.manifest.columns[column]]
            data = memoryview(self.store.read_range(shard.file, shard.offsets[column], shard.rows * item_bytes))
            chunk_bytes = self.manifest.chunk_rows * item_bytes
            for index, expected in enumerate(shard.checksums[column]):
                part = data[index * chunk_bytes : (index + 1) * chunk_bytes]
                check_chunk(chunk_checksum(part), expected, file=shard.file, tensor=column, chunk=index)
                yield self._as_array(part, column)

    def _as_array(self, data: bytes | memoryview, tensor: str) -> np.ndarray:
        if tensor in self.manifest.sites:
            site = self.manifest.sites[tensor]
            return np.frombuffer(data, NUMPY_DTYPES[site.dtype]).reshape(-1, site.width)
        return np.frombuffer(data, NUMPY_DTYPES[self.manifest.columns[tensor]])
