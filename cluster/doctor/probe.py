"""The doctor's hand on a node: an actor whose calls run side by side, so that one that hangs keeps no other waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from lexray.cluster.doctor.dashboard import ask_dashboard, look_at_dashboard
from lexray.cluster.doctor.findings import AllReduce, BucketRegion, DashboardFacts, MachineFacts, StoreFinding, Unknown
from lexray.cluster.doctor.machine import look_at_machine
from lexray.cluster.doctor.stores import (
    leave_marker,
    missing_folders,
    read_one_chunk,
    region_of,
    remove_empty,
    remove_marker,
    sees_marker,
    who_am_i,
    write_one_key,
)
from lexray.cluster.doctor.traffic import Ring, knock, open_door, sum_over_nodes
from lexray.storage.objects.settings import StorageSettings
from lexray.tuning.ray_backend.meeting import Endpoint, open_meeting

CALLS_AT_ONCE = 12
Clock = Callable[[], float]


class Probe:
    """Each method is a gatherer of this package, run on the node."""

    def __init__(self, host: str, clock: Clock = time.time) -> None:
        self._host = host
        self._clock = clock
        self._made: list[str] = []

    def ready(self) -> None:
        """Answers as soon as the process is there."""

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def machine(self, is_head: bool, cache_dir: str | None) -> MachineFacts:
        return look_at_machine(is_head=is_head, cache_dir=cache_dir)

    def dashboard(self) -> DashboardFacts | Unknown:
        return look_at_dashboard()

    def ask_dashboard(self, url: str) -> int | Unknown:
        return ask_dashboard(url)

    def data(self, url: str, settings: StorageSettings, number: int) -> StoreFinding:
        return read_one_chunk(url, settings, number)

    def output(self, url: str, settings: StorageSettings, name: str) -> StoreFinding:
        self._made = missing_folders(url)
        return write_one_key(url, settings, name)

    def leave_marker(self, url: str, settings: StorageSettings, name: str) -> None:
        leave_marker(url, settings, name)

    def sees_marker(self, url: str, settings: StorageSettings, name: str) -> StoreFinding | None:
        return sees_marker(url, settings, name)

    def remove_marker(self, url: str, settings: StorageSettings, name: str) -> None:
        remove_marker(url, settings, name)

    def tidy(self) -> None:
        """Remove folders that a write made."""
        remove_empty(self._made)

    def region(self, url: str, settings: StorageSettings, nodes: str | None) -> BucketRegion:
        return region_of(url, settings, nodes)

    def identity(self, settings: StorageSettings) -> str | Unknown:
        return who_am_i(settings)

    def door(self) -> Endpoint:
        return open_door(self._host)

    def knock(self, doors: Mapping[str, Endpoint]) -> dict[str, str]:
        return knock(doors)

    def meeting(self) -> Endpoint:
        return open_meeting(self._host)

    def sum(self, ring: Ring) -> AllReduce:
        return sum_over_nodes(ring)
