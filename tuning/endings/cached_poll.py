"""Polls a value in the background, so that training never waits for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread

log = logging.getLogger("lexray")

POLL_EVERY_S = 5.0
"""Seconds between polls of a running trial and of the driver."""


@dataclass(kw_only=True)
class CachedPoll:
    """Returns the last polled value at once, and polls again in a thread when it is older than `POLL_EVERY_S`."""

    find: Callable[[], str]
    """Returns the value, empty if there is none. An error is a warning."""
    what: str
    """Name of the value in the warning."""
    clock: Callable[[], float] = time.time
    beside: Callable[[Callable[[], None]], None] = lambda look: Thread(target=look, daemon=True).start()
    """Runs a poll in the background."""
    _found: str = ""
    _looked_s: float = -float("inf")
    _is_looking: bool = False

    def __call__(self) -> str:
        now = self.clock()
        if not self._is_looking and now - self._looked_s >= POLL_EVERY_S:
            self._looked_s, self._is_looking = now, True
            self.beside(self._look)
        return self._found

    def _look(self) -> None:
        try:
            self._found = self.find()
        except Exception as error:
            log.warning("%s: cannot be read just now (%s)", self.what, error)
        finally:
            self._is_looking = False
