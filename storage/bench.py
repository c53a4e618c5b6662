"""Benchmark reading of a dataset: plain parallel reads, the stream as training reads it, and its CPU cost.

All measurements are time-bounded and read from the store anew; repeated reads of a local disk come from the system's
page cache.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass

import numpy as np

from lexray.storage.manifest import chunk_checksum
from lexray.storage.order import WindowKey
from lexray.storage.reader import NOTHING, ChunkReads, DatasetReader, ReadChunk
from lexray.storage.stream import BatchStream
from lexray.storage.windows import LocalWindows, StreamSpec, Window, WindowReader

MB = 1e6


class _Speed:
    bytes: int
    seconds: float

    @property
    def mb_per_s(self) -> float:
        return self.bytes / self.seconds / MB


@dataclass(frozen=True, kw_only=True)
class ReadSpeed(_Speed):
    """Speed of plain ranged reads without processing."""

    parallel: int
    """Reads in flight at once."""
    gets: int
    bytes: int
    seconds: float

    @property
    def gets_per_s(self) -> float:
        return self.gets / self.seconds


@dataclass(frozen=True, kw_only=True)
class StreamSpeed(_Speed):
    """Speed of windows as training receives them: verified, filtered, permuted, cut into batches."""

    rows: int
    """Rows of the windows that arrived."""
    bytes: int
    """Bytes read from the store for them."""
    batches: int
    seconds: float
    """Seconds from the first request to the last arrival."""

    @property
    def rows_per_s(self) -> float:
        return self.rows / self.seconds


@dataclass(frozen=True, kw_only=True)
class CoreSpeed:
    """Throughput of one core on chunks in memory."""

    checksum_mb_per_s: float
    permute_mb_per_s: float
    """Megabytes per second of filtering and permuting rows."""

    def share_of_core(self, mb_per_s: float) -> tuple[float, float]:
        """Return the shares of one core that checksums and permuting take at this throughput."""
        return mb_per_s / self.checksum_mb_per_s, mb_per_s / self.permute_mb_per_s


@dataclass(frozen=True, kw_only=True)
class Feeding:
    """Number of workers of a dictionary that a stream can feed."""

    stream_rows_per_s: float
    step_rows_per_s: float
    """Rows per second of one worker that never waits for data."""

    @property
    def workers_fed(self) -> int:
        """Number of workers that train at full speed."""
        return int(self.stream_rows_per_s / self.step_rows_per_s)

    @property
    def io_bound_workers(self) -> int:
        """Number of workers from which on training waits for data."""
        return self.workers_fed + 1

    def sentence(self, dictionary: str) -> str:
        """Return the result as a sentence."""
        speeds = f"one worker trains {self.step_rows_per_s:,.0f} rows/s, the stream gives {self.stream_rows_per_s:,.0f}"
        if not self.workers_fed:
            waits = 1 - self.stream_rows_per_s / self.step_rows_per_s
            return f"{dictionary} is I/O bound with 1 worker: {speeds}, so it waits for data {waits:.0%} of its time."
        return f"{dictionary} becomes I/O bound at {self.io_bound_workers:,} workers: {speeds}."


def plain_reads(dataset: DatasetReader, sites: Sequence[str], *, seconds: float, parallel: int) -> ReadSpeed:
    """Read chunks of these sites in random order, repeatedly, for about `seconds`."""
    ranges = chunk_ranges(dataset, sites)
    shuffled = [ranges[i] for i in np.random.default_rng(0).permutation(len(ranges))]
    began, turn = time.perf_counter(), itertools.count()

    def read_some() -> list[int]:
        sizes: list[int] = []
        while not sizes or time.perf_counter() < began + seconds:
            sizes.append(len(dataset.store.read_range(*shuffled[next(turn) % len(shuffled)])))
        return sizes

    with ThreadPoolExecutor(parallel, thread_name_prefix="plain") as pool:
        readers = [pool.submit(read_some) for _ in range(parallel)]
        sizes = [size for reader in readers for size in reader.result()]
    return ReadSpeed(parallel=parallel, gets=len(sizes), bytes=sum(sizes), seconds=time.perf_counter() - began)


def chunk_ranges(dataset: DatasetReader, sites: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return file, first byte and length of every chunk of these sites."""
    return [dataset.chunk_range(chunk, site) for site in sites for chunk in range(len(dataset.chunks))]


def stream_speed(spec: StreamSpec, *, batch_rows: int, seconds: float) -> StreamSpeed:
    """Take batches as a training on one worker does, repeatedly, for about `seconds`.

    Raises UserError when the rows that training would read do not fill a batch.
    """
    source = _TimedWindows(WindowReader(spec))
    stream = BatchStream(spec=spec, source=source, batch_rows=batch_rows)
    batches, endless = 0, range(stream.steps_per_epoch * 10**9)
    source.begin(seconds)
    try:
        with suppress(_TimeIsUpError), closing(stream.batches(endless, lambda batch: None)) as taken:
            for _ in taken:
                batches += 1
    finally:
        source.stop()
    return StreamSpeed(rows=source.rows, bytes=source.bytes, batches=batches, seconds=source.arrived_s)


def core_speed(spec: StreamSpec, *, seconds: float) -> CoreSpeed:
    """Check and permute the chunks of one window, repeatedly, for about `seconds`."""
    reader = WindowReader(spec)
    key = WindowKey(epoch=0, lane=0, index=0)
    segments = reader.order(key.epoch).windows(key.lane)[key.index]
    held = _HeldChunks(reader.dataset, spec.sites, [segment.chunk for segment in segments])
    permuting = WindowReader(spec, held)

    def checksums() -> None:
        for rows in held.rows.values():
            chunk_checksum(rows.data.cast("B"))

    size = sum(rows.nbytes for rows in held.rows.values()) / MB
    return CoreSpeed(
        checksum_mb_per_s=size / median_seconds(checksums, seconds / 2),
        permute_mb_per_s=size / median_seconds(lambda: permuting.read(key), seconds / 2),
    )


def median_seconds(action: Callable[[], object], seconds: float) -> float:
    """Return the median time of an action, run once for warmup and then for about `seconds`."""
    action()
    taken: list[float] = []
    began = time.perf_counter()
    while not taken or time.perf_counter() < began + seconds:
        action_began = time.perf_counter()
        action()
        taken.append(time.perf_counter() - action_began)
    return statistics.median(taken)


class _TimeIsUpError(Exception):
    """Ends a training that is run for its data alone."""


class _TimedWindows(LocalWindows):
    """Window source that counts windows as they arrive, until the time is up."""

    def begin(self, seconds: float) -> None:
        """Start counting, for about `seconds`."""
        self.rows = self.bytes = 0
        self.arrived_s = 0.0  # from the start to the last arrival
        self._asked: list[Future[Window]] = []
        self._began = time.perf_counter()
        self._deadline = self._began + seconds

    def request(self, key: WindowKey, *, wanted_from: WindowKey | None = None) -> Future[Window]:
        self._asked = [one for one in self._asked if not one.done()]
        self._asked.append(super().request(key, wanted_from=wanted_from))
        return self._asked[-1]

    def fetch(self, handle: object) -> Window:
        if self.rows and time.perf_counter() > self._deadline:
            raise _TimeIsUpError
        window = super().fetch(handle)
        self.rows += len(window.row_ids)
        self.bytes += window.cost.store_bytes
        self.arrived_s = time.perf_counter() - self._began
        return window

    def stop(self) -> None:
        """Request no more windows and wait for those in flight, which would slow the next measurement."""
        for one in self._asked:
            one.cancel()
        wait(self._asked)


class _HeldChunks(ChunkReads):
    """Chunk reads served from memory."""

    def __init__(self, dataset: DatasetReader, sites: Sequence[str], chunks: Sequence[int]) -> None:
        super().__init__()
        self.rows = {(chunk, site): dataset.read_chunk(chunk, site) for chunk in chunks for site in sites}

    def read(self, dataset: DatasetReader, chunk: int, site: str, out: np.ndarray | None = None) -> Future[ReadChunk]:
        done: Future[ReadChunk] = Future()
        done.set_result(ReadChunk(self.rows[chunk, site], NOTHING))
        return done
