"""Read a dataset's chunks: one ranged read each, verified against the manifest.

`ChunkReads` serves all streams of a process: bounded parallelism, shared concurrent reads of a chunk, a cache on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, NamedTuple

import numpy as np

from lexray.storage.chunk_cache import ChunkCache, ChunkName
from lexray.storage.errors import CorruptDataError
from lexray.storage.manifest import Manifest, Shard, chunk_checksum
from lexray.storage.objects.retries import Retrier, StoreUnavailableError, Verdict
from lexray.storage.store import Store
from lexray.storage.synthetic_url import SCHEME

DAMAGED_READS = 3
"""Reads of a damaged chunk before the damage is attributed to the store."""
PARALLEL_READS = 8
"""Maximum number of chunks that a process reads at once."""
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
    is_generated: ClassVar[bool] = False
    """Whether chunks are computed; then they have no checksums and are not kept on disk."""

    @cached_property
    def chunks(self) -> list[ChunkPlace]:
        places, first_row = [], 0
        for number, shard in enumerate(self.manifest.shards):
            for index, start in enumerate(range(0, shard.rows, self.manifest.chunk_rows)):
                rows = min(self.manifest.chunk_rows, shard.rows - start)
                places.append(ChunkPlace(number, index, rows, first_row + start))
            first_row += shard.rows
        return places

    def chunk_range(self, chunk: int, tensor: str) -> tuple[str, int, int]:
        """Return file, first byte and length of a chunk of a site or column."""
        place, row_bytes = self.chunks[chunk], self.manifest.row_bytes(tensor)
        shard = self.manifest.shards[place.shard]
        first_byte = shard.offsets[tensor] + place.index * self.manifest.chunk_rows * row_bytes
        return shard.file, first_byte, place.rows * row_bytes

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

    def column_at(self, column: str, row_ids: np.ndarray) -> np.ndarray:
        """Return the values of a column at rows of the dataset, in their order; only chunks with such rows are read."""
        first_rows = np.array([place.first_row for place in self.chunks])
        chunk_of = np.searchsorted(first_rows, row_ids, side="right") - 1
        values = np.empty(len(row_ids), NUMPY_DTYPES[self.manifest.columns[column]])
        used = np.unique(chunk_of).tolist()
        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="column") as pool:
            for chunk, part in zip(used, pool.map(lambda chunk: self.read_chunk(chunk, column), used), strict=True):
                mine = chunk_of == chunk
                values[mine] = part[row_ids[mine] - first_rows[chunk]]
        return values

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
            if (checksum := chunk_checksum(part)) != shard.checksums[tensor][chunk]:
                raise CorruptDataError(
                    f"shard {shard.file}, {tensor}, chunk {chunk}: checksum {checksum}, the manifest says "
                    f"{shard.checksums[tensor][chunk]}"
                )


def open_dataset(store: Store, manifest: Manifest) -> DatasetReader:
    """Return the reader of a dataset's chunks: stored ones, or those of a `synthetic://` url."""
    if store.scheme != SCHEME:
        return DatasetReader(store, manifest)
    from lexray.storage.synthetic.dataset import GeneratedReader

    return GeneratedReader(store, manifest)


def as_bytes(array: np.ndarray) -> memoryview:
    """Return the memory of a C-contiguous array, writable."""
    return array.reshape(-1).view(np.uint8).data


class _MissingShardError(CorruptDataError):
    """A shard is missing; not retried."""


def _may_be_transit(error: BaseException) -> Verdict:
    damaged = isinstance(error, CorruptDataError) and not isinstance(error, _MissingShardError)
    return Verdict.AGAIN if damaged else Verdict.FINAL


class ReadCost(NamedTuple):
    """Bytes of chunks by where they were read."""

    store_bytes: int = 0
    """Bytes read from the object store."""
    disk_bytes: int = 0
    """Bytes read from the cache on disk."""
    memory_bytes: int = 0
    """Bytes not read, since another stream on this node had just read them."""

    @property
    def bytes(self) -> int:
        return sum(self)

    def plus(self, other: ReadCost) -> ReadCost:
        return ReadCost(*(a + b for a, b in zip(self, other, strict=True)))


NOTHING = ReadCost()


class ReadChunk(NamedTuple):
    """A site's rows of one chunk (rows, width), read-only, and their read cost."""

    rows: np.ndarray
    cost: ReadCost


class ChunkReads:
    """Chunk reader shared by all streams of a process; thread-safe."""

    def __init__(self, cache: ChunkCache | None = None, parallel: int = PARALLEL_READS) -> None:
        self._cache = cache
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="chunks")
        self._under_way: dict[ChunkName, Future[ReadChunk]] = {}
        self._lock = threading.Lock()

    def read(self, dataset: DatasetReader, chunk: int, site: str, out: np.ndarray | None = None) -> Future[ReadChunk]:
        """Start reading one site's rows of a chunk. The future raises CorruptDataError naming the shard.

        Rows that are read for this call are written to `out` where given; rows shared with another read are not.
        """
        name = ChunkName(dataset.manifest.id, site, chunk)
        with self._lock:
            under_way = self._under_way.get(name)
            if under_way is None:
                mine = self._under_way[name] = self._pool.submit(self._read, name, dataset, out)
        if under_way is not None:
            return _shared(under_way)
        mine.add_done_callback(lambda _: self._forget(name))
        return mine

    def _forget(self, name: ChunkName) -> None:
        with self._lock:
            del self._under_way[name]

    def _read(self, name: ChunkName, dataset: DatasetReader, out: np.ndarray | None) -> ReadChunk:
        cached = self._cached(name, dataset)
        if cached is not None:
            return ReadChunk(cached, ReadCost(disk_bytes=cached.nbytes))
        rows = dataset.read_chunk(name.chunk, name.site, out)
        if dataset.is_generated:
            return ReadChunk(rows, NOTHING)
        if self._cache is not None:
            self._cache.add(name, as_bytes(rows))
        return ReadChunk(rows, ReadCost(store_bytes=rows.nbytes))

    def _cached(self, name: ChunkName, dataset: DatasetReader) -> np.ndarray | None:
        data = self._cache.read(name) if self._cache is not None and not dataset.is_generated else None
        if data is None or self._cache is None:
            return None
        place = dataset.chunks[name.chunk]
        promised = dataset.manifest.shards[place.shard].checksums[name.site][place.index]
        if chunk_checksum(data) != promised:
            self._cache.remove(name)
            return None
        site = dataset.manifest.sites[name.site]
        return np.frombuffer(data, NUMPY_DTYPES[site.dtype]).reshape(-1, site.width)


def _shared(reading: Future[ReadChunk]) -> Future[ReadChunk]:
    """Return a future of the same rows for another reader, at no read cost."""
    shared: Future[ReadChunk] = Future()

    def pass_on(done: Future[ReadChunk]) -> None:
        error = done.exception()
        if error is not None:
            shared.set_exception(error)
        else:
            shared.set_result(ReadChunk(done.result().rows, ReadCost(memory_bytes=done.result().rows.nbytes)))

    reading.add_done_callback(pass_on)
    return shared
