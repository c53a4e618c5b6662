"""Read many small files at once, ask again until something is so, and do something now and then beside other work."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

A = TypeVar("A")
T = TypeVar("T")

READERS = 16
"""Small files read at once: from an object store each of them costs a round trip."""


def read_many(read: Callable[[A], T], places: Iterable[A]) -> list[T]:
    """Return what `read` gives for each place, in order; `READERS` of them are read at a time."""
    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(read, places))


def in_order(makers: Iterable[Callable[[], T]], *, threads: int, ahead: int, name: str) -> Generator[T]:
    """Yield the makers' results in order; while the caller uses one, threads called `name` run the next `ahead` makers.

    Closing waits for the threads. A maker's error is raised in place of its result.
    """
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        rest = iter(makers)
        coming = deque(pool.submit(make) for make in islice(rest, ahead))
        while coming:
            made = coming.popleft().result()
            coming.extend(pool.submit(make) for make in islice(rest, 1))
            yield made


def poll(
    find: Callable[[], T],
    *,
    every_s: float,
    at_most_s: float,
    until: Callable[[T], object] = bool,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `find` every `every_s` until `until` holds of what it returns, or `at_most_s` are over; return the last."""
    end_s = clock() + at_most_s
    while True:
        found = find()
        if until(found) or clock() >= end_s:
            return found
        sleep(every_s)


@dataclass(kw_only=True)
class Repeat:
    """Call `work` every `every_s` in a thread of its own, from `start` to `stop`; `work` handles its own errors."""

    work: Callable[[], None]
    every_s: float
    name: str
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread = field(init=False)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self, *, wait: bool = True) -> None:
        """End it; without `wait`, a call that is under way may still go on."""
        self._over.set()
        if wait:
            self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self.every_s):
            self.work()
