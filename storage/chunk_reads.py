"""Read chunks for a process's streams: bounded parallelism, concurrent reads of a chunk shared, a cache on disk."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from lexray.storage.chunk_cache import ChunkCache, ChunkName
from lexray.storage.manifest import chunk_checksum
from lexray.storage.reader import NUMPY_DTYPES, DatasetReader, as_bytes

PARALLEL_READS = 8
"""Maximum number of chunks that a process reads at once."""


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
        if self._cache is not None:
            self._cache.add(name, as_bytes(rows))
        return ReadChunk(rows, ReadCost(store_bytes=rows.nbytes))

    def _cached(self, name: ChunkName, dataset: DatasetReader) -> np.ndarray | None:
        data = self._cache.read(name) if self._cache is not None else None
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
