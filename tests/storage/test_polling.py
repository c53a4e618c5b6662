"""Asking again until something is so, repeated work beside other work, and many small reads."""

from __future__ import annotations

import threading

import pytest

from lexray.storage.polling import Repeat, poll, read_many


class Clock:
    """Time passes in sleeps alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("at_most_s", "found", "calls"), [(10.0, 3, 3), (1.0, 0, 2), (0.0, 0, 1)])
def test_a_poll_asks_at_least_once_and_returns_what_it_saw_last(at_most_s: float, found: int, calls: int) -> None:
    clock, seen = Clock(), list[int]()

    def find() -> int:
        seen.append(len(seen) + 1)
        return seen[-1] if seen[-1] == 3 else 0

    assert poll(find, every_s=1.0, at_most_s=at_most_s, clock=clock, sleep=clock.sleep) == found
    assert len(seen) == calls


def test_a_poll_ends_when_its_condition_holds() -> None:
    clock = Clock()
    found = poll(clock, until=lambda now: now >= 2, every_s=1.0, at_most_s=9.0, clock=clock, sleep=clock.sleep)
    assert found == 2


def test_repeated_work_goes_on_until_it_is_stopped() -> None:
    twice, calls = threading.Event(), list[int]()

    def work() -> None:
        calls.append(1)
        if len(calls) == 2:
            twice.set()

    repeat = Repeat(work=work, every_s=0.001, name="test")
    repeat.start()
    assert twice.wait(30)
    repeat.stop()
    number = len(calls)
    assert not repeat._thread.is_alive()
    assert len(calls) == number


def test_many_reads_keep_their_order() -> None:
    assert read_many(lambda number: number**2, range(100)) == [number**2 for number in range(100)]
