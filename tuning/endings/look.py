"""Look for word now and then, beside a training that waits for nobody."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread

log = logging.getLogger("lexray")

LOOK_EVERY_S = 5.0
"""How often a running trial, and the driver, look for word."""


@dataclass(kw_only=True)
class Look:
    """Answers at once with what was found the last time, and looks again in a thread when that was some time ago."""

    find: Callable[[], str]
    """The word, empty where there is none. One that cannot be had just now is a warning."""
    what: str
    """What is looked for, in the warning."""
    clock: Callable[[], float] = time.time
    beside: Callable[[Callable[[], None]], None] = lambda look: Thread(target=look, daemon=True).start()
    """Runs a look beside the training."""
    _found: str = ""
    _looked_s: float = -float("inf")
    _is_looking: bool = False

    def __call__(self) -> str:
        now = self.clock()
        if not self._is_looking and now - self._looked_s >= LOOK_EVERY_S:
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
