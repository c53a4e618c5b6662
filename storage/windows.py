"""Windows: the permuted blocks of rows that are read from the store, shared on a node and cut into batches."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple, Protocol

import numpy as np

from storage.manifest import Manifest, load_manifest
from storage.order import EpochOrder, WindowKey
from storage.reader import DatasetReader
from storage.selection import SelectedRows, Selection, select_rows
from storage.store import Store

PARALLEL_READS = 8


@dataclass(frozen=True, kw_only=True)
class StreamSpec:
    """Everything that decides a stream's rows and their order; small, hashable, sent to servers."""

    store: Store
    sites: tuple[str, ...]
    selection: Selection = field(default_factory=Selection)
    seed: int = 0
    lanes: int = 16
    window_bytes: int = 16 * 2**20
    """Bound on the bytes of a window of the widest site (at least one chunk)."""


class Window(NamedTuple):
    """Permuted rows of one window."""

    row_ids: np.ndarray
    """Number of each row in the dataset (rows), int64."""
    vectors: dict[str, np.ndarray]
    """Per site (rows, width); bfloat16 as uint16."""

    @property
    def bytes(self) -> int:
        return self.row_ids.nbytes + sum(v.nbytes for v in self.vectors.values())


class WindowSource(Protocol):
    """Where a stream gets its windows: this process (`LocalWindows`) or the node's server (`ServedWindows`)."""

    def selected_rows(self) -> np.ndarray:
        """Selected rows of each chunk (num_chunks)."""

    def request(self, key: WindowKey) -> object:
        """Begin to fetch a window; returns at once with a handle."""

    def fetch(self, handle: object) -> Window:
        """The requested window, waiting for it if need be."""


@dataclass(frozen=True)
class WindowReader:
    """Reads, verifies and permutes windows of one stream."""

    spec: StreamSpec

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self.spec.store)

    @cached_property
    def dataset(self) -> DatasetReader:
        return DatasetReader(self.spec.store, self.manifest)

    @cached_property
    def selected(self) -> SelectedRows:
        return select_rows(self.dataset, self.spec.selection, self.spec.sites)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="chunks")

    @cached_property
    def order(self) -> OrderCache:
        """Layout of an epoch, by its number."""
        return OrderCache(self.spec, self.manifest, self.selected.counts)

    def read(self, key: WindowKey) -> Window:
        """Fetch the window's chunks (in parallel), keep the selected rows, permute them."""
        order = self.order(key.epoch)
        segments = order.windows(key.lane)[key.index]
        kept = [np.flatnonzero(self.selected.masks[s.chunk])[s.start : s.stop] for s in segments]
        permuted = order.window_permutation(key, sum(map(len, kept)))
        first_rows = [self.dataset.chunks[s.chunk].first_row for s in segments]
        row_ids = np.concatenate([first + rows for first, rows in zip(first_rows, kept, strict=True)])[permuted]
        vectors = {}
        for site in self.spec.sites:
            chunks = self._pool.map(self.dataset.read_chunk, [s.chunk for s in segments], [site] * len(segments))
            vectors[site] = np.concatenate([chunk[rows] for chunk, rows in zip(chunks, kept, strict=True)])[permuted]
        return Window(row_ids, vectors)


def epoch_order(spec: StreamSpec, manifest: Manifest, selected_rows: np.ndarray, epoch: int) -> EpochOrder:
    """The order of one epoch of a stream; the same whichever of the dataset's sites are read."""
    row_bytes = max(site.row_bytes for site in manifest.sites.values())
    return EpochOrder(
        selected_rows=selected_rows,
        seed=spec.seed,
        epoch=epoch,
        lanes=spec.lanes,
        chunks_per_window=max(1, spec.window_bytes // (manifest.chunk_rows * row_bytes)),
    )


class OrderCache:
    """The orders of the two epochs that a stream can be in at once."""

    def __init__(self, spec: StreamSpec, manifest: Manifest, selected_rows: np.ndarray) -> None:
        self._make = lru_cache(maxsize=2)(lambda epoch: epoch_order(spec, manifest, selected_rows, epoch))

    def __call__(self, epoch: int) -> EpochOrder:
        return self._make(epoch)


@dataclass(frozen=True)
class LocalWindows:
    """Windows read by this process, one thread ahead of the consumer; no Ray."""

    reader: WindowReader

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, thread_name_prefix="windows")

    def selected_rows(self) -> np.ndarray:
        return self.reader.selected.counts

    def request(self, key: WindowKey) -> Future[Window]:
        return self._pool.submit(self.reader.read, key)

    def fetch(self, handle: object) -> Window:
        assert isinstance(handle, Future)
        window: Window = handle.result()
        return window
