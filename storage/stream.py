"""Batches of rows for one data-parallel rank, at any step, in the order of `storage.order`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from storage.errors import UserError
from storage.manifest import Manifest
from storage.order import WindowKey, rank_lanes, steps_per_epoch
from storage.windows import LocalWindows, OrderCache, StreamSpec, Window, WindowReader, WindowSource


class Batch(NamedTuple):
    """One rank's rows of a global batch."""

    row_ids: np.ndarray
    """Number of each row in the dataset (b)."""
    vectors: dict[str, torch.Tensor]
    """Per site (b, width), in the dtype of the dataset."""
    total_rows: int
    """Rows of the global batch, over all ranks."""


@dataclass(kw_only=True)
class BatchStream:
    """The rows that rank `rank` of `num_ranks` sees. Holds no position: `batch(t)` is a function of t.

    Of every lane the window in use and the next one are held or under way; nothing else is kept.
    """

    spec: StreamSpec
    manifest: Manifest
    source: WindowSource
    batch_rows: int
    rank: int = 0
    num_ranks: int = 1
    wait_s: float = 0.0
    """Seconds spent waiting for windows so far."""
    _held: dict[WindowKey, Window] = field(default_factory=dict)
    _requested: dict[WindowKey, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        selected_rows = self.source.selected_rows()
        self.total_rows = int(selected_rows.sum())
        """Rows that the selection keeps."""
        self._order = OrderCache(self.spec, self.manifest, selected_rows)
        self.lanes = rank_lanes(self.rank, self.num_ranks, self.spec.lanes)

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.total_rows, self.batch_rows, self.spec.lanes)

    @property
    def rows_left_out_per_epoch(self) -> int:
        """The remainder: rows that an epoch does not serve (others in every epoch)."""
        return self.total_rows - self.steps_per_epoch * self.batch_rows

    def batch(self, step: int) -> Batch:
        """This rank's part of global batch `step`, counted from 0."""
        epoch, index = divmod(step, self.steps_per_epoch)
        share = self.batch_rows // self.spec.lanes
        batch = self._rows(epoch, index * share, (index + 1) * share)
        self._prefetch(self.steps_per_epoch * share)
        return batch

    def every_row(self, max_rows: int | None = None) -> Iterator[Batch]:
        """All selected rows once (or `max_rows` of them, up to a multiple of `lanes`), for evaluation.

        Which rows come does not depend on the number of ranks. Fewer than `lanes` rows, those that the lanes leave
        over, never come. Raises UserError when these are all that the selection keeps.
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
        for start in range(0, lane_rows, share):
            yield self._rows(0, start, min(start + share, lane_rows))

    def _rows(self, epoch: int, start: int, stop: int) -> Batch:
        """Rows `start` to `stop` of each of this rank's lanes."""
        pieces = [piece for lane in self.lanes for piece in self._pieces(epoch, lane, start, stop)]
        used = {key for key, _, _ in pieces}
        for key in used - self._held.keys() - self._requested.keys():
            self._requested[key] = self.source.request(key)
        for key in used - self._held.keys():
            began = time.perf_counter()
            self._held[key] = self.source.fetch(self._requested.pop(key))
            self.wait_s += time.perf_counter() - began
        self._held = {key: self._held[key] for key in used}
        ids = np.concatenate([self._held[key].row_ids[begin:end] for key, begin, end in pieces])
        vectors = {}
        for site in self.spec.sites:
            rows = np.concatenate([self._held[key].vectors[site][begin:end] for key, begin, end in pieces])
            vectors[site] = self._tensor(site, rows)
        return Batch(ids, vectors, (stop - start) * self.spec.lanes)

    def _pieces(self, epoch: int, lane: int, start: int, stop: int) -> Iterator[tuple[WindowKey, int, int]]:
        """The windows that hold rows start..stop of a lane, and which of their rows."""
        ends = self._order(epoch).window_ends(lane)
        index = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            window_begin = int(ends[index - 1]) if index else 0
            end = min(stop, int(ends[index]))
            yield WindowKey(epoch, lane, index), start - window_begin, end - window_begin
            start, index = end, index + 1

    def _prefetch(self, served_rows: int) -> None:
        """Ask for the window after each one in use, so that it is there when its turn comes; let others go.

        Of each lane the first `served_rows` rows are served in an epoch; a window of none but later ones is not read.
        """
        following = {self._following(key, served_rows) for key in self._held} - self._held.keys()
        self._requested = {key: handle for key, handle in self._requested.items() if key in following}
        for key in following - self._requested.keys():
            self._requested[key] = self.source.request(key)

    def _following(self, key: WindowKey, served_rows: int) -> WindowKey:
        if self._order(key.epoch).window_ends(key.lane)[key.index] < served_rows:
            return WindowKey(key.epoch, key.lane, key.index + 1)
        return WindowKey(key.epoch + 1, key.lane, 0)

    def _tensor(self, site: str, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        return tensor.view(torch.bfloat16) if self.manifest.sites[site].dtype == "bfloat16" else tensor


def local_stream(spec: StreamSpec, *, batch_rows: int, rank: int = 0, num_ranks: int = 1) -> BatchStream:
    """A stream read by this process itself."""
    reader = WindowReader(spec)
    return BatchStream(
        spec=spec,
        manifest=reader.manifest,
        source=LocalWindows(reader),
        batch_rows=batch_rows,
        rank=rank,
        num_ranks=num_ranks,
    )
