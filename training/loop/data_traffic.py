"""Cost of a training's data over all its ranks: bytes by source, seconds of waiting, retries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch

from lexray.storage.objects.retries import retried_calls
from lexray.storage.reader import ReadCost
from lexray.storage.stream import BatchStream
from lexray.training.mesh.axes import WorldAxis


@dataclass(kw_only=True)
class DataTraffic:
    """Values to log, under their `data/` names.

    Bytes and retries count from where this attempt began; on a node's server a read is counted for the trial that asked
    first, so that the trials of a sweep add up to what the node read.
    """

    train: BatchStream
    evaluated: list[BatchStream]
    """Streams of held-out rows, as they are opened."""
    ranks: WorldAxis
    """All ranks of the mesh: those that split the latents of the same rows each read them."""
    _wait_s: float = 0.0
    _retries_before: int = field(default_factory=retried_calls)

    def since_last(self, elapsed_s: float) -> dict[str, float]:
        """The values, given the seconds of training since the last call. Every rank calls it."""
        waited, self._wait_s = self.train.stats.wait_s - self._wait_s, self.train.stats.wait_s
        share = min(1.0, waited / elapsed_s)
        everyones = self.ranks.gather(torch.tensor([*self._counts(), share], dtype=torch.float64))
        store, disk, memory, served, retries = everyones[:, :-1].sum(0).tolist()
        waits = everyones[:, -1].tolist()
        wanted = max(1.0, store + disk + memory)
        values = {
            "bytes_read": store,
            "bytes_served": served,
            "hit_rate": (disk + memory) / wanted,
            "hit_rate_disk": disk / wanted,
            "wait": max(waits),
            "retries": retries,
            "rows_filtered": float(self.train.rows_filtered),
        }
        if len(waits) > 1:
            values |= {f"wait_worker{rank}": wait for rank, wait in enumerate(waits)}
        return {f"data/{name}": value for name, value in values.items()}

    def bytes_read(self) -> float:
        """Return the bytes read from the store until now. Every rank calls it."""
        mine = torch.tensor([float(self._counts()[0])], dtype=torch.float64)
        return float(self.ranks.gather(mine).sum())

    def _counts(self) -> Sequence[float]:
        streams = (self.train, *self.evaluated)
        read = reduce(ReadCost.plus, (stream.stats.read for stream in streams))
        served = sum(stream.stats.bytes_served for stream in streams)
        retries = retried_calls() - self._retries_before + sum(stream.source.retries() for stream in streams)
        return *read, served, retries
