"""The driver of a sweep says in the folder that it is there; no two drive one folder, and a dead one is followed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.driver import Driver, DriverLog, newest
from lexray.tuning.driver_record import (
    BEAT_S,
    STALE_S,
    WATCH_S,
    DriverRecord,
    Place,
    check_free,
    is_alive,
    process_of,
    read_driver,
    this_place,
    write_driver,
)
from lexray.tuning.endings.budget import BY_HAND, ENDING, write_ending

ELSEWHERE = Place(machine="another machine", process="1:1", cluster="sae", job="lexray-x-1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.at(str(tmp_path / "out"))


class Clock:
    """Unix time that only sleeping moves; `each_second` is called then."""

    def __init__(self) -> None:
        self.now, self.each_second = 1_000_000.0, lambda: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.each_second()


def record(now_s: float, place: Place = ELSEWHERE, **changes: Any) -> DriverRecord:
    where = {**vars(place), "machine": place.mark("first")}
    fields = {"claim": "first", "started_s": now_s, "seen_s": now_s, **where, **changes}
    return DriverRecord(**fields)


def driver(store: Store, **changes: Any) -> Driver:
    return Driver(store=store, beat_s=0.02, **changes)


def test_the_record_tells_where_what_is_waited_for_and_how_it_ended(store):
    waits = ["waiting for 2 x 8-GPU nodes, 7 min"]
    beaten = threading.Event()

    def waiting() -> list[str]:
        beaten.set()
        return waits

    place = this_place("sae", "lexray-x-1")
    with driver(store, place=place, waiting=waiting, links=lambda: {"t": "https://w/t"}):
        assert beaten.wait(30)
    found = read_driver(store)
    assert found is not None
    assert (found.state, found.waiting, found.links) == ("ended", [], {"t": "https://w/t"})
    assert found.where == "this machine, job lexray-x-1, cluster sae"
    assert found.seen_s >= found.started_s


def test_why_nodes_are_not_launched_is_shown_while_it_lasts_and_logged_once(store):
    failures, seen = ["pool gpu: no node can be launched: quota 0"], []
    enough = threading.Event()

    def beat() -> dict[str, str]:
        found = read_driver(store)
        seen.extend(found.waiting if found is not None else [])
        if len(seen) >= 3:
            enough.set()
        return {}

    with driver(store, launch_failures=lambda: failures, links=beat):
        assert enough.wait(30)
    assert set(seen) == set(failures)
    assert store.read("log.txt").decode().count("quota 0") == 1


def test_what_trials_wait_for_is_shown_though_nobody_can_say_why(store):
    def silent() -> list[str]:
        raise RuntimeError("the GCS does not answer")

    seen, enough = list[str](), threading.Event()

    def beat() -> dict[str, str]:
        found = read_driver(store)
        seen.extend(found.waiting if found is not None else [])
        if seen:
            enough.set()
        return {}

    with driver(store, waiting=lambda: ["topk waits for 1 GPU"], launch_failures=silent, links=beat):
        assert enough.wait(30)
    assert set(seen) == {"topk waits for 1 GPU"}


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UserError("output: no"), "failed", "output: no"),
        (RuntimeError("actor\ndied"), "failed", "RuntimeError: actor died"),
        (KeyboardInterrupt(), "interrupted", ""),
    ],
)
def test_an_end_that_is_none_is_told_with_its_reason(store, error, state, reason):
    with pytest.raises(type(error)), driver(store):
        raise error
    found = read_driver(store)
    assert found is not None
    assert (found.state, found.reason) == (state, reason)
    assert state in store.read("log.txt").decode()


def test_that_nobody_knows_what_is_waited_for_silences_no_driver(store):
    with driver(store, waiting=lambda: 1 / 0):  # type: ignore[arg-type, return-value]
        pass
    found = read_driver(store)
    assert found is not None
    assert (found.state, found.waiting) == ("ended", [])


@pytest.mark.parametrize("behind_s", [0.0, 60.0, -60.0])
def test_a_living_driver_elsewhere_is_not_joined_though_its_clock_is_a_minute_off(store, behind_s):
    clock = Clock()

    def beat() -> None:
        """Its last one was one beat ago at most, by its own clock."""
        write_driver(store, record(clock.now // BEAT_S * BEAT_S - behind_s))

    clock.sleep(BEAT_S - 1.0)
    beat()
    began_s, clock.each_second = clock.now, beat
    assert is_alive(read_driver(store), clock.now)
    where = "machine [0-9a-f]{8}, job lexray-x-1, cluster sae"
    with pytest.raises(UserError, match=rf"is being run by {where}; .*lexray stop"):
        check_free(store, this_place(), clock=clock, sleep=clock.sleep)
    assert clock.now - began_s <= WATCH_S


def test_a_silent_driver_is_taken_for_dead_whatever_its_clock_says(store):
    for behind_s in (0.0, STALE_S / 2, STALE_S, -1000.0):
        clock = Clock()
        write_driver(store, record(clock() - behind_s))
        check_free(store, this_place(), clock=clock, sleep=clock.sleep)
        assert clock.now - 1_000_000.0 == pytest.approx(0.0 if behind_s == STALE_S else WATCH_S, abs=1.0)


def test_a_driver_whose_process_is_gone_from_this_machine_is_followed_at_once(store):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        place = replace(this_place(), process=process_of(process.pid))
        clock = Clock()
        write_driver(store, record(clock(), place))
        clock.each_second = lambda: write_driver(store, record(clock(), place))
        with pytest.raises(UserError, match="is being run by"):
            check_free(store, this_place(), clock=clock, sleep=clock.sleep)
    began_s = clock.now
    check_free(store, this_place(), clock=clock, sleep=clock.sleep)
    assert clock.now == began_s


def test_a_pid_that_another_process_has_by_now_is_not_the_driver(store):
    mine = process_of(os.getpid())
    assert mine
    clock = Clock()
    write_driver(store, record(clock(), replace(this_place(), process=mine + "0")))
    check_free(store, this_place(), clock=clock, sleep=clock.sleep)
    assert clock.now == 1_000_000.0


def test_a_driver_that_was_taken_for_dead_ends_and_writes_no_more(store):
    displaced = threading.Event()
    with driver(store, on_displaced=displaced.set):
        until = time.monotonic() + 30
        while not displaced.wait(0.05) and time.monotonic() < until:
            write_driver(store, record(2_000_000.0, claim="second"))  # who lives writes again: one may be overwritten
        assert displaced.is_set()
    found = read_driver(store)
    assert found is not None
    assert (found.claim, found.state) == ("second", "running")


def test_word_for_an_earlier_driver_is_none_for_the_next(store):
    write_ending(store, BY_HAND)
    with driver(store):
        assert not store.exists(ENDING)


def test_a_record_with_fields_of_a_later_version_is_read(store):
    store.write("driver.json", b'{"claim": "c", "host": "h", "started_s": 1, "seen_s": 2, "moon": "full"}')
    found = read_driver(store)
    assert found is not None
    assert is_alive(found, 2 + STALE_S - 1)
    assert not is_alive(found, 2 + STALE_S)
    assert BEAT_S * 3 < STALE_S, "one beat that is late makes nobody dead"


def test_messages_of_all_drivers_stand_in_the_log_in_order(store):
    for number in range(2):
        with driver(store):
            logging.getLogger("lexray").warning("message %d", number)
    lines = store.read("log.txt").decode().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["warning: message 0", "warning: message 1"]


@given(st.lists(st.text("ab", max_size=9), max_size=60), st.integers(20, 200))
def test_a_log_keeps_its_newest_whole_lines_in_bounded_bytes(lines, max_bytes):
    text = ""
    for line in lines:
        text = newest(f"{text}{line}\n", max_bytes)
        assert len(text) <= max_bytes
        assert text.endswith(f"{line}\n")
    assert "".join(f"{line}\n" for line in lines).endswith(text)


def test_a_log_is_written_when_there_is_something_new_and_by_whole_lines(store):
    log = DriverLog(store=store, clock=lambda: 0.0)
    log.save()
    assert not store.exists("log.txt")
    log.write("one\ntw")
    log.save()
    assert store.read("log.txt") == b"1970-01-01 00:00:00 one\n"
    log.write("o\n")
    log.save()
    assert store.read("log.txt").decode().splitlines()[1] == "1970-01-01 00:00:00 two"
