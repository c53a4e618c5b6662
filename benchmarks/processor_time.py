"""How much processor time some processes of a command take, which busy neighbours change little."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

import psutil

POLL_S = 0.2


class ProcessorTime:
    """Adds up the process `pid` and those below it that are `wanted`, from the block's beginning to its end.

    Looked at every `POLL_S`: what a process does after the last look is missed.
    """

    def __init__(self, pid: int, wanted: Callable[[psutil.Process], bool]) -> None:
        self._root, self._wanted = psutil.Process(pid), wanted
        self._seconds: dict[psutil.Process, float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def seconds(self) -> float:
        """User and system."""
        return sum(self._seconds.values())

    def __enter__(self) -> ProcessorTime:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(POLL_S):
            with suppress(psutil.Error):
                for process in (self._root, *self._root.children(recursive=True)):
                    self._look(process)

    def _look(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):  # it has ended
            if process == self._root or process in self._seconds or self._wanted(process):
                times = process.cpu_times()
                self._seconds[process] = times.user + times.system
