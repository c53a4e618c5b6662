"""Fencing: only the attempt whose token is in a trial's folder writes there.

A worker that loses the cluster, but not storage, does not know that its trial continues elsewhere. Every attempt writes
its token to the folder before its workers start. The first worker of the previous attempt finds it within
`POLL_EVERY_S`, sooner than the new workers begin to write, and ends without writing anything more.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lexray.storage.polling import Repeat
from lexray.storage.store import Store
from lexray.tuning.endings.cached_poll import POLL_EVERY_S

log = logging.getLogger("lexray")

ATTEMPT = "attempt.json"
STALE_S = 3 * POLL_EVERY_S
"""Maximum age in seconds of the last poll before a write waits for a new one."""


class DisplacedError(RuntimeError):
    """Another attempt owns the trial's folder."""


@dataclass(frozen=True)
class FencedStore(Store):
    """A store that refuses writes and deletes while `check` raises."""

    check: Callable[[], None] = lambda: None

    def at_path(self, path: str) -> FencedStore:
        inner = super().at_path(path)
        return FencedStore(inner.url, inner.settings, inner.base, self.check)

    def write(self, path: str, data: bytes) -> None:
        self.check()
        super().write(path, data)

    def delete(self, path: str) -> None:
        self.check()
        super().delete(path)


@dataclass(kw_only=True)
class Fence:
    """One attempt's ownership of the trial's folder."""

    store: Store
    """Folder of the trial."""
    token: str
    """Token of this attempt."""
    clock: Callable[[], float] = time.time
    is_displaced: bool = False
    """Whether a poll found that another attempt owns the folder."""
    _looked_s: float = -float("inf")

    @property
    def fenced_store(self) -> FencedStore:
        """The folder, writable only while this attempt owns it."""
        return FencedStore(self.store.url, self.store.settings, self.store.base, self.check)

    def take(self) -> None:
        """Take ownership of the folder."""
        self.store.write(ATTEMPT, self._content)

    def look(self) -> None:
        """Poll the owner of the folder. A failed read is only a warning."""
        self._looked_s = self.clock()
        try:
            found = self.store.read(ATTEMPT)
        except FileNotFoundError:
            return
        except Exception as error:
            log.warning("%s/%s: cannot be read just now (%s)", self.store.url, ATTEMPT, error)
            return
        if found != self._content and not self.is_displaced:
            self.is_displaced = True
            log.warning("%s", self._said)

    def check(self) -> None:
        """Raise DisplacedError if another attempt owned the folder at the last poll.

        Reads the store only if the last poll is old: a process that was frozen must not continue unaware.
        """
        if self.clock() - self._looked_s > STALE_S:
            self.look()
        if self.is_displaced:
            raise DisplacedError(self._said)

    def confirm(self) -> None:
        """Poll, and raise DisplacedError if another attempt owns the folder."""
        self.look()
        self.check()

    @contextmanager
    def watching(self, interval_s: float = POLL_EVERY_S) -> Iterator[None]:
        """Poll periodically within the context, until another attempt owns the folder."""

        def watch() -> None:
            if not self.is_displaced:
                self.look()

        looks = Repeat(work=watch, every_s=interval_s, name="fence")
        looks.start()
        try:
            yield
        finally:
            looks.stop(wait=False)

    @property
    def _said(self) -> str:
        return f"{self.store.url}: another attempt at this trial runs by now; this one ends"

    @property
    def _content(self) -> bytes:
        return json.dumps({"attempt": self.token}).encode()
