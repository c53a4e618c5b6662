"""A small discrete-event simulation: a clock that jumps from event to event, and lines in which work waits its turn."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


class Loop:
    """Events in order of time; those of the same time in the order in which they were announced."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Action]] = []
        self._numbers = itertools.count()

    def at(self, time_s: float, action: Action) -> None:
        """Have something happen, not before now."""
        assert time_s >= self.now_s, (time_s, self.now_s)
        heapq.heappush(self._events, (time_s, next(self._numbers), action))

    def run(self) -> None:
        """Until nothing is to happen any more."""
        while self._events:
            self.now_s, _, action = heapq.heappop(self._events)
            action()


class Line:
    """Something that serves one piece of work after another, in the order in which they come."""

    def __init__(self, loop: Loop, per_s: float, latency_s: float = 0.0) -> None:
        self.loop, self.per_s, self.latency_s = loop, per_s, latency_s
        self.busy_s = 0.0
        self.served = 0.0
        self._free_s = 0.0

    def serve(self, amount: float, then: Action) -> None:
        """`then` once so much is through and `latency_s` has passed, in which the next is served already."""
        begin_s = max(self.loop.now_s, self._free_s)
        self._free_s = begin_s + amount / self.per_s
        self.busy_s += amount / self.per_s
        self.served += amount
        self.loop.at(self._free_s + self.latency_s, then)
