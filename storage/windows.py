"""Windows: permuted blocks of rows that are read from the store, shared on a node and cut into batches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial, reduce
from typing import NamedTuple, Protocol

import numpy as np

from lexray.storage.chunk_cache import CacheSettings, ChunkCache
from lexray.storage.manifest import Manifest, load_manifest
from lexray.storage.order import EpochOrder, Segment, WindowKey
from lexray.storage.reader import NUMPY_DTYPES, ChunkReads, DatasetReader, ReadChunk, ReadCost, open_dataset
from lexray.storage.selection import SelectedRows, Selection, select_rows
from lexray.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """Parameters that determine a stream's rows and their order; small, hashable, sent to servers."""

    store: Store
    sites: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    seed: int = 0
    lanes: int = 16
    window_bytes: int = 16 * 2**20
    """Maximum bytes of a window of the widest site (at least one chunk)."""


class Window(NamedTuple):
    """Rows of one window: stored chunk after chunk, served in the order of `places`.

    Permuting needs no separate pass over the vectors: making a batch copies rows anyway, in permuted order.
    """

    row_ids: np.ndarray
    """Dataset index of each row, in serving order (rows), int64."""
    places: np.ndarray
    """Stored position of each row, in serving order (rows), int64."""
    vectors: dict[str, np.ndarray]
    """Per site (stored rows, width); bfloat16 as uint16. Rows that are not served may be in between."""
    cost: ReadCost
    """Bytes that were read for it; for a shared window, those attributed to this consumer's request."""

    @property
    def bytes(self) -> int:
        return self.row_ids.nbytes + self.places.nbytes + sum(v.nbytes for v in self.vectors.values())

    def take(self, site: str, begin: int, end: int, out: np.ndarray) -> None:
        """Copy rows `begin` to `end`, in serving order, into `out` (end - begin, width)."""
        self.vectors[site].take(self.places[begin:end], axis=0, out=out, mode="clip")  # clip: without a buffer


class Described(NamedTuple):
    """Properties of a stream that are known before its first step."""

    manifest: Manifest
    selected_rows: np.ndarray
    """Selected rows of each chunk (num_chunks)."""
    rows_filtered: int
    """Number of rows of the dataset that are never served: special tokens, outlying norms."""


class WindowSource(Protocol):
    """Source of a stream's windows: this process (`LocalWindows`) or the node's server (`ServedWindows`)."""

    def describe(self) -> Described:
        """Read the manifest and the columns that the selection needs."""

    def request(self, key: WindowKey, *, wanted_from: WindowKey | None = None) -> object:
        """Start fetching a window; returns a handle immediately.

        `wanted_from`: the consumer will never request an earlier window of this lane (eviction hint).
        """

    def fetch(self, handle: object) -> Window:
        """Wait for the requested window and return it."""

    def retries(self) -> int:
        """Return the number of retried calls to the store for the windows fetched so far."""

    def leave(self) -> None:
        """Unsubscribe: no window is needed until the next request."""


WHOLE_FROM_SHARE = 0.75
"""Share of served rows from which a chunk is stored whole, in one copy."""


@dataclass(frozen=True)
class _Part:
    """A window's part of one chunk."""

    rows: np.ndarray
    """Rows of the chunk that are served, ascending."""
    row_ids: np.ndarray
    chunk_rows: int
    whole: bool

    @property
    def stored(self) -> int:
        return self.chunk_rows if self.whole else len(self.rows)

    @property
    def places(self) -> np.ndarray:
        """Positions of the served rows among the stored ones of this chunk."""
        return self.rows if self.whole else np.arange(len(self.rows))


@dataclass(frozen=True)
class WindowReader:
    """Reads, verifies and permutes windows of one stream."""

    spec: StreamSpec
    chunks: ChunkReads = field(default_factory=ChunkReads)
    """Chunk reader shared by the streams of this process."""

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self.spec.store)

    @cached_property
    def dataset(self) -> DatasetReader:
        return open_dataset(self.spec.store, self.manifest)

    @cached_property
    def selected(self) -> SelectedRows:
        return select_rows(self.dataset, self.spec.selection, self.spec.sites)

    @cached_property
    def order(self) -> Callable[[int], EpochOrder]:
        """Return the order of an epoch."""
        return order_cache(self.spec, self.manifest, self.selected.counts)

    def describe(self) -> Described:
        selected = self.selected
        return Described(self.manifest, selected.counts, selected.special + selected.outlying)

    def read(self, key: WindowKey) -> Window:
        """Fetch the window's chunks in parallel, concatenate them as they arrive, and permute their rows."""
        order = self.order(key.epoch)
        segments = order.windows(key.lane)[key.index]
        parts = [self._part(segment) for segment in segments]
        ends = np.cumsum([part.stored for part in parts])
        spans = [slice(end - part.stored, end) for part, end in zip(parts, ends, strict=True)]
        vectors = {
            site: np.empty((int(ends[-1]), facts.width), NUMPY_DTYPES[facts.dtype])
            for site, facts in ((site, self.manifest.sites[site]) for site in self.spec.sites)
        }
        reading = [
            (part, rows[span], self.chunks.read(self.dataset, segment.chunk, site, rows[span] if part.whole else None))
            for site, rows in vectors.items()
            for segment, part, span in zip(segments, parts, spans, strict=True)
        ]
        costs = [_put(part, place, reading_one.result()) for part, place, reading_one in reading]
        places = np.concatenate([span.start + part.places for part, span in zip(parts, spans, strict=True)])
        permuted = order.window_permutation(key, len(places))
        row_ids = np.concatenate([part.row_ids for part in parts])[permuted]
        return Window(row_ids, places[permuted], vectors, reduce(ReadCost.plus, costs))

    def _part(self, segment: Segment) -> _Part:
        place = self.dataset.chunks[segment.chunk]
        rows = np.flatnonzero(self.selected.masks[segment.chunk])[segment.start : segment.stop]
        return _Part(rows, place.first_row + rows, place.rows, whole=len(rows) >= WHOLE_FROM_SHARE * place.rows)


def _put(part: _Part, place: np.ndarray, read: ReadChunk) -> ReadCost:
    """Copy the rows of a chunk into place, unless they were read in place."""
    if not part.whole:
        np.take(read.rows, part.rows, axis=0, out=place, mode="clip")
    elif not np.may_share_memory(read.rows, place):
        place[:] = read.rows
    return read.cost


def order_cache(spec: StreamSpec, manifest: Manifest, selected_rows: np.ndarray) -> Callable[[int], EpochOrder]:
    """Return a function of an epoch that returns its order, which is independent of the sites that are read.

    It keeps the orders of the two epochs that a stream can be in at once.
    """
    row_bytes = max(site.row_bytes for site in manifest.sites.values())
    chunks_per_window = max(1, spec.window_bytes // (manifest.chunk_rows * row_bytes))
    order = partial(EpochOrder, selected_rows=selected_rows, seed=spec.seed, lanes=spec.lanes)
    return lru_cache(maxsize=2)(lambda epoch: order(epoch=epoch, chunks_per_window=chunks_per_window))


@dataclass(frozen=True)
class LocalWindows:
    """Windows read by this process ahead of the consumer; no Ray."""

    reader: WindowReader

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        # While the rows of one window are copied, the chunks of the next are fetched.
        return ThreadPoolExecutor(2, thread_name_prefix="windows")

    def describe(self) -> Described:
        return self.reader.describe()

    def request(self, key: WindowKey, *, wanted_from: WindowKey | None = None) -> Future[Window]:
        return self._pool.submit(self.reader.read, key)

    def fetch(self, handle: object) -> Window:
        assert isinstance(handle, Future)
        return handle.result()

    def retries(self) -> int:
        return 0  # counted by this process itself

    def leave(self) -> None:
        pass  # nothing is cached


def local_chunks(cache: CacheSettings | None) -> ChunkReads:
    """Return the chunk reader for the streams of this process, with the cache on disk if there is one."""
    return ChunkReads(ChunkCache(cache) if cache is not None else None)
