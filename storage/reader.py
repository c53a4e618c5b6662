"""Read a dataset's chunks: one ranged read each, verified against the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from storage.errors import CorruptDataError
from storage.manifest import ITEM_BYTES, Manifest, Shard, check_chunk, chunk_checksum
from storage.objects.retries import Retrier, StoreUnavailableError, Verdict
from storage.store import Store

DAMAGED_READS = 3
"""Times that a chunk is read before its damage counts as the store's own."""
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
        row_bytes = self.manifest.row_bytes(tensor)
        first_byte = place.index * self.manifest.chunk_rows * row_bytes
        data = self._read(place.shard, tensor, range(place.index, place.index + 1), first_byte, place.rows * row_bytes)
        return self._as_array(data, tensor)

    def read_column(self, column: str) -> list[np.ndarray]:
        """A whole column, one array per chunk."""
        return list(self.column_parts(column))

    def column_parts(self, column: str) -> Iterator[np.ndarray]:
        """A whole column, one array per chunk, by one ranged read per shard."""
        item_bytes = ITEM_BYTES[self.manifest.columns[column]]
        chunk_bytes = self.manifest.chunk_rows * item_bytes
        for number, shard in enumerate(self.manifest.shards):
            chunks = range(len(shard.checksums[column]))
            data = memoryview(self._read(number, column, chunks, 0, shard.rows * item_bytes))
            for index in chunks:
                yield self._as_array(data[index * chunk_bytes : (index + 1) * chunk_bytes], column)

    def _read(self, number: int, tensor: str, chunks: range, first_byte: int, length: int) -> bytes:
        """Bytes of some chunks of a shard's tensor, read again where they are damaged: it may have been on the way."""
        shard = self.manifest.shards[number]

        def once() -> bytes:
            try:
                data = self.store.read_range(shard.file, shard.offsets[tensor] + first_byte, length)
            except FileNotFoundError as error:
                raise _MissingShardError(f"shard {shard.file}: is missing from {self.store.url}") from error
            self._check(shard, tensor, chunks, data, length)
            return data

        policy = replace(self.store.settings.policy, attempts=DAMAGED_READS)
        try:
            return Retrier(policy=policy).call(f"{self.store.url}/{shard.file}", once, judge=_may_be_transit)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, CorruptDataError):
                raise error.__cause__ from None
            raise

    def _check(self, shard: Shard, tensor: str, chunks: range, data: bytes, length: int) -> None:
        """Raise CorruptDataError for the first of these chunks that is short or not what its checksum promises."""
        chunk_bytes = self.manifest.chunk_rows * self.manifest.row_bytes(tensor)
        view = memoryview(data)
        for position, chunk in enumerate(chunks):
            part = view[position * chunk_bytes :][:chunk_bytes]
            expected = min(chunk_bytes, length - position * chunk_bytes)
            if len(part) != expected:
                raise CorruptDataError(
                    f"shard {shard.file}, {tensor}, chunk {chunk}: {len(part)} bytes, expected {expected}"
                )
            promised = shard.checksums[tensor][chunk]
            check_chunk(chunk_checksum(part), promised, file=shard.file, tensor=tensor, chunk=chunk)

    def _as_array(self, data: bytes | memoryview, tensor: str) -> np.ndarray:
        if tensor in self.manifest.sites:
            site = self.manifest.sites[tensor]
            return np.frombuffer(data, NUMPY_DTYPES[site.dtype]).reshape(-1, site.width)
        return np.frombuffer(data, NUMPY_DTYPES[self.manifest.columns[tensor]])


class _MissingShardError(CorruptDataError):
    """Nothing that reading again could mend."""


def _may_be_transit(error: BaseException) -> Verdict:
    damaged = isinstance(error, CorruptDataError) and not isinstance(error, _MissingShardError)
    return Verdict.AGAIN if damaged else Verdict.FINAL
