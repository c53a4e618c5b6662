"""Which rows are in global batch t: a pure function of (manifest, seed, lanes, window size, t) and of nothing else.

Per epoch a seeded permutation puts all chunks in a sequence. The sequence of their selected rows is cut into `lanes`
equal pieces (fewer than `lanes` rows stay over and are left out of that epoch); a chunk on a cut belongs in part to
both neighbours, so that lanes are equal to the row and an epoch loses less than one batch. In a lane, runs of
`chunks_per_window` chunks form windows; the rows of a window are permuted. Batch t takes the next batch_rows / lanes
rows of every lane, lane 0 first.

Random numbers are raw Philox output sorted by us: numpy promises that stream for ever, which it does not for
`permutation`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from lexray.storage.errors import UserError

_DEAL, _WINDOW = 0, 1  # what a Philox key is used for: dealing chunks, permuting a window


@dataclass(frozen=True)
class Segment:
    """Selected rows `start` to `stop` (counted among the chunk's selected rows) of one chunk."""

    chunk: int
    start: int
    stop: int


@dataclass(frozen=True, order=True)
class WindowKey:
    """Names a window within one stream."""

    epoch: int
    lane: int
    index: int


@dataclass(frozen=True, kw_only=True)
class EpochOrder:
    """The layout of one epoch."""

    selected_rows: np.ndarray
    """Per chunk, how many of its rows the selection keeps (num_chunks)."""
    seed: int
    epoch: int
    lanes: int
    chunks_per_window: int

    @cached_property
    def _sequence(self) -> np.ndarray:
        return permutation(len(self.selected_rows), self.seed, _DEAL, self.epoch)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(self.selected_rows[self._sequence])

    @property
    def lane_rows(self) -> int:
        """Rows of each lane in this epoch; the same for every epoch."""
        return int(self._ends[-1]) // self.lanes if len(self._ends) else 0

    @cached_property
    def _lane(self) -> Callable[[int], tuple[list[list[Segment]], np.ndarray]]:
        return cache(self._cut_lane)

    def windows(self, lane: int) -> list[list[Segment]]:
        """The lane's windows in order, each a list of segments; no window is empty."""
        return self._lane(lane)[0]

    def window_ends(self, lane: int) -> np.ndarray:
        """Cumulative rows at the end of each of the lane's windows (num_windows)."""
        return self._lane(lane)[1]

    def window_permutation(self, key: WindowKey, rows: int) -> np.ndarray:
        """Order of a window's rows (rows)."""
        return permutation(rows, self.seed, _WINDOW, key.epoch, key.lane, key.index)

    def _cut_lane(self, lane: int) -> tuple[list[list[Segment]], np.ndarray]:
        segments, size = self._segments(lane), self.chunks_per_window
        windows = [segments[i : i + size] for i in range(0, len(segments), size)]
        return windows, np.cumsum([sum(s.stop - s.start for s in window) for window in windows])

    def _segments(self, lane: int) -> list[Segment]:
        begin, end = lane * self.lane_rows, (lane + 1) * self.lane_rows
        first, last = np.searchsorted(self._ends, begin, side="right"), np.searchsorted(self._ends, end)
        segments = []
        for place in range(int(first), min(int(last) + 1, len(self._ends))):
            chunk, chunk_end = int(self._sequence[place]), int(self._ends[place])
            chunk_begin = chunk_end - int(self.selected_rows[chunk])
            start, stop = max(begin, chunk_begin) - chunk_begin, min(end, chunk_end) - chunk_begin
            if stop > start:
                segments.append(Segment(chunk, start, stop))
        return segments


def permutation(count: int, seed: int, purpose: int, *counter: int) -> np.ndarray:
    """A permutation of 0..count-1 that depends on the other arguments alone, on any machine and numpy version."""
    assert len(counter) <= 3, counter
    words = [0, *counter, 0, 0, 0][:4]  # Philox advances the first word as it draws
    key = np.array([seed, purpose], dtype=np.uint64)  # numpy 1 makes floats of a list with 2**63
    raw = np.random.Philox(counter=words, key=key).random_raw(count)
    return np.argsort(raw, kind="stable")


def rank_lanes(rank: int, num_ranks: int, lanes: int) -> range:
    """Lanes that a data-parallel rank serves: whole, contiguous, as even as they go (16 over 3: 6, 5, 5)."""
    if num_ranks > lanes:
        raise UserError(
            f"workers: {num_ranks} data-parallel workers, but the stream has {lanes} lanes; raise data.lanes"
        )
    size, larger = divmod(lanes, num_ranks)
    start = rank * size + min(rank, larger)
    return range(start, start + size + (rank < larger))


def check_lanes(batch_rows: int, lanes: int) -> None:
    """Raise UserError unless every lane gives the same number of rows, one or more, to a batch."""
    if batch_rows < lanes:
        raise UserError(
            f"data.batch_rows: {batch_rows} rows cannot come from data.lanes {lanes} in equal shares; "
            f"use {lanes} or more, or lower data.lanes to {batch_rows}"
        )
    if batch_rows % lanes:
        near = round(batch_rows / lanes) * lanes
        raise UserError(f"data.batch_rows: {batch_rows} is not a multiple of data.lanes {lanes}; use {near}")


def steps_per_epoch(selected_rows: int, batch_rows: int, lanes: int) -> int:
    """Whole global batches in an epoch. Raises UserError when not even one fits, or lanes do not divide the batch."""
    check_lanes(batch_rows, lanes)
    steps = (selected_rows // lanes) // (batch_rows // lanes)
    if not steps:
        raise UserError(f"batch_rows: {batch_rows:,} is larger than the {selected_rows:,} training rows of the dataset")
    return steps
