"""Publishes the driver's heartbeat and log to the sweep's folder, from a thread."""

from __future__ import annotations

import _thread
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TextIO

from lexray.storage.anonymous import without_names
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.driver_record import (
    BEAT_S,
    ENDED,
    FAILED,
    INTERRUPTED,
    RUNNING,
    DriverRecord,
    Place,
    beat,
    check_free,
    claim,
    this_place,
)
from lexray.tuning.endings.budget import clear_ending

log = logging.getLogger("lexray")

LOG_FILE = "log.txt"
LOG_BYTES = 10**6
"""Maximum bytes of the log; older lines are dropped."""


@dataclass(kw_only=True)
class DriverLog:
    """The driver's log as a text file, with a time before each line; written to the folder by `save`."""

    store: Store
    max_bytes: int = LOG_BYTES
    clock: Callable[[], float] = time.time
    _text: str = ""
    _partial: str = ""
    _is_written: bool = True
    _lock: threading.RLock = field(default_factory=threading.RLock)  # reentrant: a signal handler may write, too

    def resume(self) -> None:
        """Continue the log of an earlier driver."""
        try:
            earlier = self.store.read(LOG_FILE).decode(errors="replace")
        except FileNotFoundError:
            return
        with self._lock:
            self._text = newest(earlier + self._text, self.max_bytes)

    def write(self, text: str) -> int:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(self.clock()))
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            said = without_names("".join(f"{stamp} {line}\n" for line in lines))
            self._text = newest(self._text + said, self.max_bytes)
            self._is_written = self._is_written and not lines
        return len(text)

    def flush(self) -> None:
        """Do nothing: a printer flushes after every line; see `save`."""

    def save(self) -> None:
        """Write the file if it has new lines."""
        with self._lock:
            text, self._is_written = (None if self._is_written else self._text), True
        if text is not None:
            self.store.write(LOG_FILE, text.encode())


def newest(text: str, max_bytes: int) -> str:
    """Return the text, or its last whole lines in half of `max_bytes`, so that not every new line truncates it."""
    content = text.encode()
    if len(content) <= max_bytes:
        return text
    return content[-(max_bytes // 2) - 1 :].split(b"\n", 1)[-1].decode(errors="replace")


@dataclass(kw_only=True)
class Driver:
    """Context that claims the sweep's folder and writes a heartbeat every `beat_s` seconds.

    See `lexray.tuning.driver_record`.
    """

    store: Store
    """Folder of the sweep."""
    place: Place = field(default_factory=this_place)
    waiting: Callable[[], list[str]] = list
    """Returns what trials wait for, one line each; set by the placer's client."""
    launch_failures: Callable[[], list[str]] = list
    """Returns why awaited nodes are not launched, one line each; logged once, shown while trials wait."""
    links: Callable[[], dict[str, str]] = dict
    """Returns the W&B pages by trial id."""
    beat_s: float = BEAT_S
    clock: Callable[[], float] = time.time
    on_displaced: Callable[[], None] = _thread.interrupt_main
    """Called when another driver took over the folder: this one must end."""
    log: DriverLog = field(init=False)
    _record: DriverRecord = field(init=False)
    _state: str = RUNNING
    _reason: str = ""
    _failures: list[str] = field(default_factory=list)
    _is_displaced: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)
    _over: bool = False

    def __post_init__(self) -> None:
        self.log = DriverLog(store=self.store, clock=self.clock)

    def check(self) -> None:
        """Raise UserError while another driver is alive; nothing is written."""
        check_free(self.store, self.place, clock=self.clock)

    def __enter__(self) -> Driver:
        """Claim the folder, and clear a stop request of an earlier driver."""
        self._record = claim(self.store, self.place, uuid.uuid4().hex, self.clock())
        clear_ending(self.store)
        self.log.resume()
        self._handler = _LogHandler(self.log)
        logging.getLogger("lexray").addHandler(self._handler)
        self._thread = threading.Thread(target=self._loop, name="driver", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception):
            self.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        elif error is not None:
            self.interrupt()
        elif self._state == RUNNING:
            self._state = ENDED
        self._over = True
        self._wake.set()
        self._thread.join()
        logging.getLogger("lexray").removeHandler(self._handler)

    def fail(self, reason: str) -> None:
        """Set the record's final state to failed, with the reason."""
        self._state, self._reason = FAILED, " ".join(reason.split())
        self.log.write(f"failed: {self._reason}\n")

    def interrupt(self) -> None:
        """Record the interruption at once: the process may have only seconds left."""
        if self._state == RUNNING:
            self._state, self._reason = INTERRUPTED, "" if not self._is_displaced else "another driver took over"
            self.log.write("interrupted\n")
            self._wake.set()

    def _loop(self) -> None:
        while not self._is_displaced:
            over = self._over
            self._beat()
            if over:
                return
            self._wake.wait(self.beat_s)
            self._wake.clear()

    def _beat(self) -> None:
        waiting = [without_names(line) for line in self._waiting()]
        told = {"state": self._state, "reason": without_names(self._reason), "waiting": waiting, "links": self.links()}
        try:
            written = beat(self.store, self._record, self.clock(), **told)
            if written is None:
                self._displaced()
                return
            self._record = written
            self.log.save()
        except Exception as error:
            log.warning("the driver's record cannot be written just now (%s)", " ".join(str(error).split()))

    def _waiting(self) -> list[str]:
        """Return what trials wait for; empty on an error, since the heartbeat matters more."""
        try:
            waiting = self.waiting() if self._state == RUNNING else []
        except Exception as error:
            log.debug("what trials wait for is not known just now (%s)", error)
            return []
        return [*waiting, *self._new_failures()] if self._state == RUNNING else []

    def _new_failures(self) -> list[str]:
        try:
            failures = self.launch_failures()
        except Exception as error:
            log.debug("why nodes are not launched is not known just now (%s)", error)
            return []
        for line in failures:
            if line not in self._failures:
                log.warning("%s", line)
        self._failures = failures
        return failures

    def _displaced(self) -> None:
        self._is_displaced = True
        if not self._over:
            log.error("another driver runs this sweep now: this one was silent for too long, and ends")
            self.on_displaced()


@contextmanager
def unclaimed(store: Store) -> Iterator[None]:
    """Run a sweep without a driver record."""
    clear_ending(store)
    yield


class _LogHandler(logging.Handler):
    """Writes lexray's log messages to the driver's log."""

    def __init__(self, out: DriverLog | TextIO) -> None:
        super().__init__(logging.INFO)
        self._out = out

    def emit(self, record: logging.LogRecord) -> None:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        self._out.write(f"{level}{record.getMessage()}\n")
