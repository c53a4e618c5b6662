"""Readers that take turns, each in a process of its own, and what came out as a table."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import NamedTuple, Protocol

EPOCH_TIMEOUT_S = 120
THREADS = {"OMP_NUM_THREADS": "1"}


class Reader(Protocol):
    """One way to read a dataset; lives in a process of its own."""

    def prepare(self) -> None:
        """Whatever has to be done before an epoch and is not measured."""

    def epoch(self, number: int) -> int:
        """Read everything once; the rows that came."""


class Turn(NamedTuple):
    """One measured epoch."""

    rows: int
    seconds: float
    cpu_s: float
    """Processor time of the reader's process, all threads."""


class Failed(NamedTuple):
    """Why a reader cannot take part, in one line."""

    reason: str


OpenReader = Callable[[], Reader]
"""Called in the reader's process: picklable."""


def take_turns(
    readers: Mapping[str, OpenReader], rounds: int, *, steady: bool = False
) -> dict[str, list[Turn] | Failed]:
    """So many epochs of each reader after one that does not count; every round has a turn of each.

    With `steady` each turn has an epoch ahead of the one that counts: a process that waited for its turn pays for
    memory that the system took from it, which one that goes on does not.
    """
    running = {name: _Running(open_reader, steady) for name, open_reader in readers.items()}
    turns: dict[str, list[Turn]] = {name: [] for name in readers}
    failed: dict[str, Failed] = {}
    try:
        for number in range(rounds + 1):
            for name in _rotated(list(running), number):
                answer = failed.get(name) or running[name].turn(number)
                if isinstance(answer, Failed):
                    failed[name] = answer
                elif number:
                    turns[name].append(answer)
    finally:
        for reader in running.values():
            reader.stop()
    return {**turns, **failed}


def _rotated(names: list[str], number: int) -> list[str]:
    """Nobody always comes after the same one, nor first."""
    shift = number % len(names)
    ahead = [*names[shift:], *names[:shift]]
    return ahead[::-1] if number % 2 else ahead


def rows_per_s(turns: list[Turn]) -> float:
    """Median over the turns."""
    return statistics.median(turn.rows / turn.seconds for turn in turns)


def ratio(turns: list[Turn], base: list[Turn]) -> float:
    """Median over the rounds of one reader's speed over another's in the same round."""
    return statistics.median(
        (ours.rows / ours.seconds) / (its.rows / its.seconds) for ours, its in zip(turns, base, strict=True)
    )


def print_turns(title: str, found: Mapping[str, list[Turn] | Failed], base: str, row_bytes: int) -> None:
    """One line a reader: rows/s, MB/s, and how many times the speed of `base`."""
    print(f"\n{title}")
    compared = found[base]
    for name, turns in found.items():
        if isinstance(turns, Failed):
            print(f"  {name:46} {turns.reason}")
            continue
        speed = rows_per_s(turns)
        times = f"{ratio(turns, compared):6.2f} x {base}" if not isinstance(compared, Failed) else ""
        print(f"  {name:46} {speed:11,.0f} rows/s {speed * row_bytes / 1e6:7,.0f} MB/s   {times}", flush=True)


class _Running:
    """A reader's process, and our end of the line to it."""

    def __init__(self, open_reader: OpenReader, steady: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, theirs = context.Pipe()
        os.environ.update(THREADS)
        self._process = context.Process(target=_serve, args=(theirs, open_reader, steady))
        self._process.start()
        theirs.close()

    def turn(self, number: int) -> Turn | Failed:
        try:
            self._line.send(number)
            if not self._line.poll(EPOCH_TIMEOUT_S):
                self._process.kill()
                return Failed(f"no epoch in {EPOCH_TIMEOUT_S} s")
            answer: Turn | Failed = self._line.recv()
        except (EOFError, BrokenPipeError):
            return Failed("its process ended")
        return answer

    def stop(self) -> None:
        self._line.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(line: Connection, open_reader: OpenReader, steady: bool) -> None:
    multiprocessing.set_start_method("fork", force=True)  # what loaders have on Linux, if we did not spawn this process
    try:
        reader = open_reader()
        while True:
            number = line.recv()
            reader.prepare()
            if steady:
                reader.epoch(2 * number)
            began, cpu_began = time.perf_counter(), time.process_time()
            rows = reader.epoch(2 * number + 1)
            line.send(Turn(rows, time.perf_counter() - began, time.process_time() - cpu_began))
    except EOFError:
        pass
    except BaseException as error:
        traceback.print_exc()
        line.send(Failed(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"))
