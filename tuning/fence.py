"""One attempt at a trial writes into its folder: the one whose token lies there.

A worker that is cut off from the cluster, but not from storage, does not know that its trial goes on elsewhere. Every
attempt leaves its token in the folder before its workers start. The first worker of the one before finds it within
`LOOK_EVERY_S`, sooner than the new workers have begun to write, and ends without writing anything more.
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
from lexray.tuning.endings.look import LOOK_EVERY_S

log = logging.getLogger("lexray")

ATTEMPT = "attempt.json"
STALE_S = 3 * LOOK_EVERY_S
"""How old the last look may be before the next one is waited for."""


class DisplacedError(RuntimeError):
    """Another attempt has the folder of the trial."""


@dataclass(frozen=True)
class FencedStore(Store):
    """A store in which nothing is written or deleted while `check` raises."""

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
    """One attempt's view of who has the folder."""

    store: Store
    """Folder of the trial."""
    token: str
    """Of this attempt."""
    clock: Callable[[], float] = time.time
    is_displaced: bool = False
    """Whether another attempt had the folder at the last look, or at one before."""
    _looked_s: float = -float("inf")

    @property
    def fenced_store(self) -> FencedStore:
        """The folder, for this attempt alone."""
        return FencedStore(self.store.url, self.store.settings, self.store.base, self.check)

    def take(self) -> None:
        """The folder is this attempt's from now on."""
        self.store.write(ATTEMPT, self._content)

    def look(self) -> None:
        """Find out who has the folder. A store that cannot be read tells nothing: a warning."""
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
        """Raise DisplacedError if another attempt had the folder at the last look.

        Asks no store, unless nobody looked for long: a process that was frozen must not go on as if nothing had been.
        """
        if self.clock() - self._looked_s > STALE_S:
            self.look()
        if self.is_displaced:
            raise DisplacedError(self._said)

    def confirm(self) -> None:
        """Look, and raise DisplacedError if another attempt has the folder."""
        self.look()
        self.check()

    @contextmanager
    def watching(self, interval_s: float = LOOK_EVERY_S) -> Iterator[None]:
        """Look now and then beside what is done inside, until another attempt has the folder."""

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
