"""Read a dataset's chunks: one ranged read each, verified against the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lexray.storage.errors import CorruptDataError
from lexray.storage.manifest import Manifest, Shard, check_chunk, chunk_checksum
from lexray.storage.objects.retries import Retrier, StoreUnavailableError, Verdict
from lexray.storage.store import Store

DAMAGED_READS = 3
"""Reads of a damaged chunk before the damage is attributed to the store."""
# numpy has no bfloat16: rows are uint16 there and viewed as bfloat16 by torch.
NUMPY_DTYPES = {"bfloat16": np.uint16, "float16": np.float16, "float32": np.float32, "int32": np.int32}


@dataclass(frozen=True)
class ChunkPlace:
    """Location of a chunk: its shard, its index in the shard, its rows."""

    shard: int
    index: int
    rows: int
    first_row: int
    """Index of its first row in the dataset."""


@dataclass(frozen=True)
class DatasetReader:
    """Reads chunks of a dataset by their index over all shards, in the manifest's order."""

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

    def read_chunk(self, chunk: int, tensor: str, out: np.ndarray | None = None) -> np.ndarray:
        """Read one chunk of a site (rows, width) or a column (rows), into `out` where given.

        Raises CorruptDataError naming the shard.
        """
        place = self.chunks[chunk]
        first_byte = place.index * self.manifest.chunk_rows * self.manifest.row_bytes(tensor)
        rows = self._empty(place.rows, tensor) if out is None else out
        self._read(place.shard, tensor, range(place.index, place.index + 1), first_byte, as_bytes(rows))
        return rows

    def read_column(self, column: str) -> list[np.ndarray]:
        """Read a whole column, one array per chunk."""
        return list(self.column_parts(column))

    def column_parts(self, column: str) -> Iterator[np.ndarray]:
        """Yield a whole column, one array per chunk, by one ranged read per shard."""
        for number, shard in enumerate(self.manifest.shards):
            rows, chunks = self._empty(shard.rows, column), range(len(shard.checksums[column]))
            self._read(number, column, chunks, 0, as_bytes(rows))
            yield from (rows[i * self.manifest.chunk_rows :][: self.manifest.chunk_rows] for i in chunks)

    def _empty(self, rows: int, tensor: str) -> np.ndarray:
        try:
            if tensor in self.manifest.sites:
                site = self.manifest.sites[tensor]
                return np.empty((rows, site.width), NUMPY_DTYPES[site.dtype])
            return np.empty(rows, NUMPY_DTYPES[self.manifest.columns[tensor]])
        except MemoryError as error:
            size = rows * self.manifest.row_bytes(tensor)
            raise CorruptDataError(
                f"dataset {self.store.url}: {rows:,} rows of {tensor} take {size:,} bytes at once, more than there is "
                "memory; write it again with smaller chunks and shards"
            ) from error

    def _read(self, number: int, tensor: str, chunks: range, first_byte: int, out: memoryview) -> None:
        """Read chunks of a shard's tensor, again where they are damaged: the damage may be in transfer."""
        shard = self.manifest.shards[number]

        def once() -> None:
            try:
                count = self.store.read_range_into(shard.file, shard.offsets[tensor] + first_byte, out)
            except FileNotFoundError as error:
                raise _MissingShardError(f"shard {shard.file}: is missing from {self.store.url}") from error
            self._check(shard, tensor, chunks, out, count)

        policy = replace(self.store.settings.policy, attempts=DAMAGED_READS)
        try:
            Retrier(policy=policy).call(f"{self.store.url}/{shard.file}", once, judge=_may_be_transit)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, CorruptDataError):
                raise error.__cause__ from None
            raise

    def _check(self, shard: Shard, tensor: str, chunks: range, data: memoryview, count: int) -> None:
        """Raise CorruptDataError for the first of these chunks that is short or does not match its checksum."""
        chunk_bytes = self.manifest.chunk_rows * self.manifest.row_bytes(tensor)
        for position, chunk in enumerate(chunks):
            begin = position * chunk_bytes
            part = data[begin:][:chunk_bytes]
            found = min(count - begin, len(part)) if count <= len(data) else count
            if found != len(part):
                raise CorruptDataError(
                    f"shard {shard.file}, {tensor}, chunk {chunk}: {max(0, found)} bytes, expected {len(part)}"
                )
            promised = shard.checksums[tensor][chunk]
            check_chunk(chunk_checksum(part), promised, file=shard.file, tensor=tensor, chunk=chunk)


def as_bytes(array: np.ndarray) -> memoryview:
    """Return the memory of a C-contiguous array, writable."""
    return array.reshape(-1).view(np.uint8).data


class _MissingShardError(CorruptDataError):
    """A shard is missing; not retried."""


def _may_be_transit(error: BaseException) -> Verdict:
    damaged = isinstance(error, CorruptDataError) and not isinstance(error, _MissingShardError)
    return Verdict.AGAIN if damaged else Verdict.FINAL
