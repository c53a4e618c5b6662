"""Batches of rows for one data-parallel rank, at any step, in the order of `lexray.storage.order`."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from lexray.storage.errors import UserError
from lexray.storage.order import WindowKey, rank_lanes, steps_per_epoch
from lexray.storage.polling import in_order
from lexray.storage.reader import NOTHING, ReadCost
from lexray.storage.windows import LocalWindows, StreamSpec, Window, WindowReader, WindowSource, order_cache

T = TypeVar("T")

_one_ahead = partial(in_order, threads=1, ahead=1, name="ahead")
LATE_S = 0.005
"""Seconds of waiting above which a window counts as late: more than mapping an available one takes."""


class Batch(NamedTuple):
    """One rank's rows of a global batch."""

    row_ids: np.ndarray
    """Index of each row in the dataset (b)."""
    vectors: dict[str, torch.Tensor]
    """Per site (b, width), in the dtype of the dataset."""
    total_rows: int
    """Rows of the global batch, over all ranks."""


@dataclass(kw_only=True)
class StreamStats:
    """Statistics of one consumer's stream."""

    read: ReadCost = NOTHING
    """Bytes of the chunks of its windows, by where they were read; their sum is what it would have read alone."""
    bytes_served: int = 0
    """Bytes of its windows, without rows that the selection leaves out."""
    wait_s: float = 0.0
    """Seconds that its consumer waited for batches."""


@dataclass(kw_only=True)
class BatchStream:
    """Stream of the rows of rank `rank` of `num_ranks`. Stateless: `batch(t)` is a function of t.

    Of every lane, the windows in use and the next one are held or in flight; nothing else is kept. Not thread-safe.
    """

    spec: StreamSpec
    source: WindowSource
    batch_rows: int
    rank: int = 0
    num_ranks: int = 1
    stats: StreamStats = field(default_factory=StreamStats)
    _is_late: bool = False
    _held: dict[WindowKey, Window] = field(default_factory=dict)
    _requested: dict[WindowKey, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.manifest, selected_rows, self.rows_filtered = self.source.describe()
        self.total_rows = int(selected_rows.sum())
        """Number of rows that the selection keeps."""
        self._order = order_cache(self.spec, self.manifest, selected_rows)
        self.lanes = rank_lanes(self.rank, self.num_ranks, self.spec.lanes)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.total_rows, self.batch_rows, self.spec.lanes)

    def batch(self, step: int) -> Batch:
        """Return this rank's part of global batch `step`, counted from 0."""
        began = time.perf_counter()
        batch = self._batch(step)
        self.stats.wait_s += time.perf_counter() - began
        return batch

    def batches(self, steps: range, ready: Callable[[Batch], T]) -> Generator[T]:
        """Yield `ready` of this rank's part of each of these (consecutive) batches, for a training.

        While the caller works on one, a thread makes the next; its errors are raised in place of that batch. The server
        is informed of passed windows, which are evicted first. Close or exhaust the generator before calling another
        method.
        """
        made = _one_ahead(partial(self._made_ready, step, steps.stop, ready) for step in steps)
        began = time.perf_counter()
        try:
            for batch in made:
                self.stats.wait_s += time.perf_counter() - began
                yield batch
                began = time.perf_counter()
        finally:
            made.close()
            self._held, self._requested = {}, {}
            self.source.leave()

    def _made_ready(self, step: int, end: int, ready: Callable[[Batch], T]) -> T:
        return ready(self._batch(step, end))

    def _batch(self, step: int, end: int | None = None) -> Batch:
        """Return batch `step`, of a training up to step `end` where given."""
        epoch, index = divmod(step, self.steps_per_epoch)
        share = self.batch_rows // self.spec.lanes
        batch = self._rows(epoch, index * share, (index + 1) * share)
        self._prefetch(index * share, end)
        return batch

    def every_row(self, max_rows: int | None = None) -> Iterator[Batch]:
        """Yield all selected rows once (or `max_rows` of them, up to a multiple of `lanes`), for evaluation.

        The rows do not depend on the number of ranks. The remainder of fewer than `lanes` rows is never served. Raises
        UserError when the selection keeps no others.
        """
        lane_rows = self._order(0).lane_rows
        if self.total_rows and not lane_rows:
            raise UserError(
                f"data.lanes: {self.spec.lanes} lanes, but the {self.spec.selection.part} part of the dataset has only "
                f"{self.total_rows} rows; lower data.lanes or raise data.held_out"
            )
        if max_rows is not None:
            lane_rows = min(lane_rows, -(-max_rows // self.spec.lanes))
        share = max(1, self.batch_rows // self.spec.lanes)
        starts = range(0, lane_rows, share)
        made = _one_ahead(partial(self._rows, 0, start, min(start + share, lane_rows)) for start in starts)
        try:
            yield from made
        finally:
            made.close()
            self._held = {}

    def _rows(self, epoch: int, start: int, stop: int) -> Batch:
        """Return rows `start` to `stop` of each of this rank's lanes."""
        pieces = [piece for lane in self.lanes for piece in self._pieces(epoch, lane, start, stop)]
        used = {key for key, _, _ in pieces}
        asked_before = used & self._requested.keys()
        for key in used - self._held.keys() - self._requested.keys():
            self._requested[key] = self.source.request(key)
        self._is_late = self._fetch(asked_before) > LATE_S
        self._fetch(used & self._requested.keys())
        self._held = {key: self._held[key] for key in used}
        ids = np.concatenate([self._held[key].row_ids[begin:end] for key, begin, end in pieces])
        vectors = {site: self._gathered(site, pieces) for site in self.spec.sites}
        return Batch(ids, vectors, (stop - start) * self.spec.lanes)

    def _fetch(self, keys: Set[WindowKey]) -> float:
        """Fetch and hold these windows; return the seconds waited."""
        began = time.perf_counter()
        for key in keys:
            self._held[key] = window = self.source.fetch(self._requested.pop(key))
            self.stats.read = self.stats.read.plus(window.cost)
            self.stats.bytes_served += window.bytes
        return time.perf_counter() - began

    def _gathered(self, site: str, pieces: Sequence[tuple[WindowKey, int, int]]) -> torch.Tensor:
        """Return the pieces' rows, concatenated (b, width)."""
        first = self._held[pieces[0][0]].vectors[site]
        rows, at = np.empty((sum(end - begin for _, begin, end in pieces), first.shape[1]), first.dtype), 0
        for key, begin, end in pieces:
            self._held[key].take(site, begin, end, rows[at : at + end - begin])
            at += end - begin
        tensor = torch.from_numpy(rows)
        return tensor.view(torch.bfloat16) if self.manifest.sites[site].dtype == "bfloat16" else tensor

    def _pieces(self, epoch: int, lane: int, start: int, stop: int) -> Iterator[tuple[WindowKey, int, int]]:
        """Yield the windows that hold rows `start` to `stop` of a lane, and the range of their rows."""
        ends = self._order(epoch).window_ends(lane)
        index = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            window_begin = int(ends[index - 1]) if index else 0
            end = min(stop, int(ends[index]))
            yield WindowKey(epoch, lane, index), start - window_begin, end - window_begin
            start, index = end, index + 1

    def _prefetch(self, start: int, end: int | None) -> None:
        """Prefetch the windows after the batch whose rows begin at `start` of each lane, and release others.

        A lane that enters its next window with this batch requests another only after releasing the old one, if time
        allows. A training requests no window beyond its last batch, and reports those that it has passed.
        """
        share = self.batch_rows // self.spec.lanes
        following: dict[WindowKey, WindowKey] = {}
        for lane in self.lanes:
            held = sorted(key for key in self._held if key.lane == lane)
            ends = self._order(held[-1].epoch).window_ends(lane)
            if len(held) == 1 or ends[held[-1].index] < start + 2 * share:
                following[self._following(held[-1], self.steps_per_epoch * share)] = held[0]
        following = {key: first for key, first in following.items() if end is None or self._first_step(key) < end}
        self._requested = {key: handle for key, handle in self._requested.items() if key in following}
        for key in self._paced(following.keys() - self._requested.keys(), start):
            self._requested[key] = self.source.request(key, wanted_from=None if end is None else following[key])

    def _paced(self, keys: Set[WindowKey], start: int) -> list[WindowKey]:
        """Return those of the needed windows to request now: all if a requested one was late.

        Lanes reach their next windows at the same batch. Reading all at once would leave little CPU time for the next
        batches, so requests are spread until the current windows are half served.
        """
        if self._is_late or not keys:
            return sorted(keys)
        held = self._held.keys()
        left = min(self._order(key.epoch).window_ends(key.lane)[key.index] for key in held) - start
        batches = int(left) * self.spec.lanes // self.batch_rows
        return sorted(keys)[: -(-len(keys) // max(1, batches // 2))]

    def _following(self, key: WindowKey, served_rows: int) -> WindowKey:
        """Return the next window of the lane, where an epoch serves the lane's first `served_rows` rows only."""
        if self._order(key.epoch).window_ends(key.lane)[key.index] < served_rows:
            return WindowKey(key.epoch, key.lane, key.index + 1)
        return WindowKey(key.epoch + 1, key.lane, 0)

    def _first_step(self, key: WindowKey) -> int:
        """Return the first batch with rows of this window."""
        begin = int(self._order(key.epoch).window_ends(key.lane)[key.index - 1]) if key.index else 0
        return key.epoch * self.steps_per_epoch + begin // (self.batch_rows // self.spec.lanes)


def local_stream(spec: StreamSpec, *, batch_rows: int, rank: int = 0, num_ranks: int = 1) -> BatchStream:
    """Return a stream that this process reads itself."""
    source = LocalWindows(WindowReader(spec))
    return BatchStream(spec=spec, source=source, batch_rows=batch_rows, rank=rank, num_ranks=num_ranks)
