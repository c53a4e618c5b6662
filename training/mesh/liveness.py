"""Liveness of ranks, and checks that ranks read the right rows on distinct devices.

A rank that hangs (a stopped process, a stuck disk) leaves the others waiting in a collective until the process group's
timeout. Each rank therefore writes its last step and the time to the group's own key-value store, from a thread, and a
rank whose collective failed reports which ranks were silent.
"""

from __future__ import annotations

import itertools
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
import xxhash

from lexray.storage.stream import BatchStream
from lexray.training.mesh.mesh import Mesh, MeshCoord

log = logging.getLogger("lexray")

BEAT_S = 2.0
"""Seconds between heartbeats."""
SILENT_AFTER_BEATS = 5
"""Heartbeats that a rank may miss: it may be busy, and hosts' clocks differ slightly."""
NEVER = -float("inf")


class Heartbeat(NamedTuple):
    """A rank's last heartbeat."""

    rank: int
    host: str
    step: int
    time_s: float
    """Unix time by the rank's own clock; -inf when there was none."""


class KeyValueStore(Protocol):
    """Key-value store shared by the ranks."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        """Wait for keys. Raises RuntimeError when one is not set in time."""


class RankSilentError(RuntimeError):
    """A collective failed, and some ranks had stopped sending heartbeats."""


@dataclass(kw_only=True)
class Watch:
    """Sends this rank's heartbeats and checks those of the others."""

    rank: int
    num_ranks: int
    store: KeyValueStore = field(default_factory=lambda: _default_store())
    """Key-value store of the process group."""
    step: int = 0
    """Current step, set by the training loop."""
    interval_s: float = BEAT_S
    clock: Callable[[], float] = time.time
    _done: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Send heartbeats inside the context; a collective that fails while ranks are silent raises RankSilentError."""
        thread = threading.Thread(target=self._beat_on, name="beats", daemon=True)
        thread.start()
        try:
            yield
        except RuntimeError as error:  # raised by torch for a collective that failed or timed out
            silent = silent_ranks(self._all_beats(), self.clock(), self.interval_s)
            if not silent:
                raise
            raise RankSilentError(describe(silent, self.clock())) from error
        finally:
            self._done.set()
            thread.join(self.interval_s)  # it may be blocked on a store whose host is stopped

    def beat(self) -> None:
        """Send one heartbeat."""
        content = json.dumps([socket.gethostname(), self.step, self.clock()])
        self.store.set(f"lexray/beat/{self.rank}", content)

    def _beat_on(self) -> None:
        while True:
            try:
                self.beat()
            except RuntimeError:
                return  # the store's host is gone; the other ranks report it
            if self._done.wait(self.interval_s):
                return

    def _all_beats(self) -> list[Heartbeat]:
        """Return all ranks' heartbeats; where the store does not respond, its host, rank 0, is the silent one."""
        found: list[Heartbeat] = []
        asking = threading.Thread(target=self._read_beats, args=(found,), name="beats of all", daemon=True)
        asking.start()
        asking.join(self.interval_s * (self.num_ranks + 1))
        return found if len(found) == self.num_ranks else [Heartbeat(0, "the store's host", -1, NEVER)]

    def _read_beats(self, found: list[Heartbeat]) -> None:
        for rank in range(self.num_ranks):
            key = f"lexray/beat/{rank}"
            try:
                self.store.wait([key], timedelta(seconds=self.interval_s))
                found.append(Heartbeat(rank, *json.loads(self.store.get(key))))
            except RuntimeError:
                found.append(Heartbeat(rank, "?", -1, NEVER))


@dataclass
class Alone:
    """Liveness of a single rank: nothing to check."""

    step: int = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        yield


def _default_store() -> KeyValueStore:
    found: KeyValueStore = dist.distributed_c10d._get_default_store()  # no public accessor
    return found


def silent_ranks(beats: Sequence[Heartbeat], now_s: float, interval_s: float) -> list[Heartbeat]:
    """Return the ranks without a heartbeat for `SILENT_AFTER_BEATS` intervals, by the caller's clock."""
    return [beat for beat in beats if now_s - beat.time_s > SILENT_AFTER_BEATS * interval_s]


def describe(silent: Sequence[Heartbeat], now_s: float) -> str:
    """Return one line that names the silent ranks."""
    words = []
    for beat in silent:
        if beat.time_s == NEVER:
            words.append(f"rank {beat.rank} gives no sign of life")
        else:
            silent_s = now_s - beat.time_s
            words.append(
                f"rank {beat.rank} on {beat.host} has been silent for {silent_s:.0f} s, since step {beat.step}"
            )
    return "; ".join(words)


# Checks of rows and devices ---------------------------------------------------------------------------------------


class RankIdentity(NamedTuple):
    """Device and rows of a rank, which must differ from or equal those of other ranks."""

    host: str
    device: str
    """UUID of the GPU; empty on a CPU, which is shared."""
    rows: str
    """Hash of the numbers of the rows of the first batch."""


def seat_of(row_ids: np.ndarray, device: torch.device) -> RankIdentity:
    """Return this rank's identity."""
    uuid = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
    return RankIdentity(socket.gethostname(), uuid, xxhash.xxh3_64_hexdigest(np.ascontiguousarray(row_ids).tobytes()))


def check_seats(seats: Sequence[RankIdentity], places: Sequence[MeshCoord]) -> None:
    """Raise RuntimeError naming two ranks that share a device, or that read wrong rows."""
    for a, first in enumerate(seats):
        for b in range(a + 1, len(seats)):
            second, same_data = seats[b], places[a].data_index == places[b].data_index
            if first.device and first[:2] == second[:2]:
                raise RuntimeError(
                    f"ranks {a} and {b} both compute on GPU {first.device} of {first.host}, and NCCL needs one for "
                    "each; look whether CUDA_VISIBLE_DEVICES names a GPU twice there"
                )
            if (first.rows == second.rows) != same_data:
                what = "read the same rows, but split them" if not same_data else "read other rows, but share them"
                raise RuntimeError(f"ranks {a} and {b} {what}: their streams do not belong to one mesh")


@dataclass(frozen=True)
class RowCheck:
    """Checks, for debugging, that the ranks read the right rows of every batch (collective)."""

    mesh: Mesh
    planned: BatchStream | None
    """On rank 0, the whole batches as one process reads them."""

    def __call__(self, step: int, row_ids: np.ndarray) -> None:
        """Check a batch. Raises RuntimeError, on all ranks, naming those that read the wrong rows."""
        planned = self.planned.batch(step).row_ids if self.planned is not None else None
        everyones: list[Any] = [(row_ids, planned)]
        if self.mesh.place.size > 1:
            everyones = [None] * self.mesh.place.size
            dist.all_gather_object(everyones, (row_ids, planned))
        check_rows(step, [mine for mine, _ in everyones], everyones[0][1], self.mesh.place.feature)


def check_rows(step: int, by_rank: Sequence[np.ndarray], planned: np.ndarray, feature: int) -> None:
    """Raise RuntimeError unless each planned row is read once, by all `feature` ranks of a group."""
    for rank, row_ids in enumerate(by_rank):
        first = rank - rank % feature
        if not np.array_equal(row_ids, by_rank[first]):
            raise RuntimeError(f"batch {step}: ranks {first} and {rank} share their rows, but read other ones")
    groups = by_rank[::feature]
    for a, b in itertools.combinations(range(len(groups)), 2):
        common = np.intersect1d(groups[a], groups[b])
        if len(common):
            raise RuntimeError(f"batch {step}: ranks {a * feature} and {b * feature} both read row {common[0]}")
    found = np.sort(np.concatenate(groups))
    if not np.array_equal(found, np.sort(planned)):
        raise RuntimeError(
            f"batch {step}: {len(np.setdiff1d(planned, found))} of {len(planned)} planned rows are read by no rank, "
            f"{len(found)} rows are read"
        )


def exchange_identities(mesh: Mesh, row_ids: np.ndarray, device: torch.device) -> None:
    """Check identities before the first step (collective); raises on all ranks when one is wrong."""
    place = mesh.place
    if place.size == 1:
        return
    seats: list[RankIdentity | None] = [None] * place.size
    dist.all_gather_object(seats, seat_of(row_ids, device))
    places = [MeshCoord(rank=rank, data=place.data, feature=place.feature) for rank in range(place.size)]
    check_seats([seat for seat in seats if seat is not None], places)
