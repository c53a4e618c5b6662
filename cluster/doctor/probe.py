"""The doctor's hand on a node: an actor whose calls run side by side, so that one that hangs keeps no other waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from lexray.cluster.doctor.findings import StoreFinding
from lexray.cluster.doctor.stores import missing_folders, remove_empty, write_one_key
from lexray.storage.objects.settings import StorageSettings

CALLS_AT_ONCE = 12
Clock = Callable[[], float]


class Probe:
    """Runs functions of this package on the node."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._made: list[str] = []

    def ready(self) -> None:
        """Answers as soon as the process is there."""

    def now(self) -> float:
        """Seconds since 1970."""
        return self._clock()

    def call(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Return what the function returns here."""
        return function(*arguments, **named)

    def output(self, url: str, settings: StorageSettings, name: str) -> StoreFinding:
        """Write, read and delete a key, and remember the folders that the write makes."""
        self._made = missing_folders(url)
        return write_one_key(url, settings, name)

    def tidy(self) -> None:
        """Remove folders that a write made."""
        remove_empty(self._made)
