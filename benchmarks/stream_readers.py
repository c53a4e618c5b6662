"""lexray's ways to read a dataset, and plain GETs of the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.stream_data import ROW_BYTES, SITE, WIDTH, evict
from lexray.storage.bench import chunk_ranges
from lexray.storage.manifest import load_manifest
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.order import WindowKey
from lexray.storage.reader import NOTHING, PARALLEL_READS, DatasetReader
from lexray.storage.selection import Selection
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import LocalWindows, StreamSpec, Window, WindowReader, WindowSource

BATCH_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Place:
    """Location of a dataset."""

    url: str
    endpoint: str | None = None
    cold: bool = False
    """Forgotten by the system before each epoch, so that it comes from the disk."""

    @property
    def store(self) -> Store:
        return Store.at(self.url, StorageSettings(endpoint_url=self.endpoint))

    @property
    def spec(self) -> StreamSpec:
        """The default order over all rows."""
        return StreamSpec(store=self.store, sites=(SITE,), selection=Selection(part="all", max_norm_ratio=None))

    def prepare(self) -> None:
        if self.cold:
            evict(Path(self.url))


class PlainGets:
    """Every chunk once, in a random order, by several threads; nothing is done with it."""

    def __init__(self, place: Place, get: Callable[[Place], Callable[[str, int, int], bytes]]) -> None:
        store = place.store
        self._ranges = chunk_ranges(DatasetReader(store, load_manifest(store)), [SITE])
        self._get = get(place)
        self.prepare = place.prepare

    def epoch(self, number: int) -> int:
        order = np.random.default_rng(number).permutation(len(self._ranges))
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            return sum(pool.map(lambda i: len(self._get(*self._ranges[i])), order)) // ROW_BYTES


def get_by_store(place: Place) -> Callable[[str, int, int], bytes]:
    """lexray's own way to the store."""
    return place.store.read_range


def get_by_boto3(place: Place) -> Callable[[str, int, int], bytes]:
    """Amazon's own library."""
    import boto3
    from botocore.config import Config

    client = boto3.client("s3", endpoint_url=place.endpoint, config=Config(max_pool_connections=PARALLEL_READS))
    bucket, _, folder = place.url.removeprefix("s3://").partition("/")

    def get(file: str, start: int, length: int) -> bytes:
        answer = client.get_object(Bucket=bucket, Key=f"{folder}/{file}", Range=f"bytes={start}-{start + length - 1}")
        data: bytes = answer["Body"].read()
        return data

    return get


class Stream:
    """Batches as a training on one worker takes them."""

    def __init__(self, place: Place, source: WindowSource) -> None:
        self.stream = BatchStream(spec=place.spec, source=source, batch_rows=BATCH_ROWS)
        self.prepare = place.prepare

    def epoch(self, number: int) -> int:
        steps = range(number * self.stream.steps_per_epoch, (number + 1) * self.stream.steps_per_epoch)
        return sum(self.stream.batches(steps, lambda batch: len(batch.row_ids)))


def plain_gets(place: Place) -> PlainGets:
    return PlainGets(place, get_by_store)


def plain_gets_by_boto3(place: Place) -> PlainGets:
    return PlainGets(place, get_by_boto3)


def local_stream(place: Place) -> Stream:
    return Stream(place, LocalWindows(WindowReader(place.spec)))


def unpermuted_stream(place: Place) -> Stream:
    """The same without permuting: chunk after chunk in a window."""
    return Stream(place, LocalWindows(_Unpermuted(place.spec)))


class _Unpermuted(WindowReader):
    """Windows whose rows stay as they lie in their chunks: one copy, which a window needs in any case."""

    def read(self, key: WindowKey) -> Window:
        segments = self.order(key.epoch).windows(key.lane)[key.index]
        reading = [self.chunks.read(self.dataset, segment.chunk, SITE) for segment in segments]
        first_rows = [self.dataset.chunks[s.chunk].first_row + s.start for s in segments]
        ids = [np.arange(first, first + s.stop - s.start) for first, s in zip(first_rows, segments, strict=True)]
        row_ids = np.concatenate(ids)
        rows, end, read = np.empty((len(row_ids), WIDTH), np.uint16), 0, NOTHING
        for segment in segments:
            chunk, cost = reading.pop(0).result()
            begin, end = end, end + segment.stop - segment.start
            rows[begin:end] = chunk[segment.start : segment.stop]
            read = read.plus(cost)
        return _InOrder(row_ids, np.arange(len(row_ids)), {SITE: rows}, read)


class _InOrder(Window):
    """A batch is cut from it in one piece."""

    def take(self, site: str, begin: int, end: int, out: np.ndarray) -> None:
        out[:] = self.vectors[site][begin:end]
