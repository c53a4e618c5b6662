"""Ends a whole sweep early: at a deadline, when its hours are spent, or on request.

The hours of a trial are those of its workers from start to end, summed in `trials/TRIAL/spent.json` over all attempts;
a killed attempt counts up to its last note. The driver sums the trials and writes a stop request to `ending.json`.
Running trials poll it, save their state and end. `lexray stop` writes the same request from anywhere, and the driver
then starts no further trial.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from threading import Thread
from typing import NamedTuple

from lexray.storage.errors import UserError
from lexray.storage.polling import Repeat, read_many
from lexray.storage.store import Store
from lexray.tuning.endings.cached_poll import POLL_EVERY_S, CachedPoll
from lexray.tuning.file.stop_block import SECONDS_PER_HOUR, EndsBlock, in_utc
from lexray.tuning.folder_documents import ENDING as ENDING_DOCUMENT
from lexray.tuning.folder_documents import SPENT as SPENT_DOCUMENT
from lexray.tuning.folder_documents import read_if_there
from lexray.tuning.sweep_folder import PAUSED, SweepFolder
from lexray.tuning.trials import Footprint, Trial

log = logging.getLogger("lexray")

DEADLINE, GPU_HOURS, CPU_HOURS, BY_HAND = PAUSED
SPENT, ENDING = "spent.json", "ending.json"
NOTE_EVERY_S = 60.0
"""Seconds between a running trial's notes of its usage."""


class Usage(NamedTuple):
    """Usage of workers, in CPU and GPU seconds."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0

    def plus(self, footprint: Footprint, seconds: float) -> Usage:
        return Usage(self.cpu_s + footprint.cpus * seconds, self.gpu_s + footprint.gpus * seconds)


def read_usage(store: Store) -> Usage:
    """Read the usage of the trial in this folder. Raises CorruptDataError."""
    file, remedy = f"{store.url}/{SPENT}", "remove it to count from nothing"
    found = read_if_there(store, SPENT, SPENT_DOCUMENT, file=file, remedy=remedy)
    return Usage() if found is None else Usage(**found)


def sum_usage(parts: Iterable[Usage]) -> Usage:
    parts = list(parts)
    return Usage(sum(p.cpu_s for p in parts), sum(p.gpu_s for p in parts))


@dataclass(frozen=True, kw_only=True)
class UsageMeter:
    """Measures the usage of one attempt at a trial, in addition to earlier attempts."""

    store: Store
    """Folder of the trial."""
    footprint: Footprint
    before: Usage
    began_s: float
    """Unix time of the attempt's start."""

    def note(self, now_s: float) -> None:
        """Write the usage so far. A failure is a warning: uncounted hours end no trial."""
        spent = self.before.plus(self.footprint, max(0.0, now_s - self.began_s))
        try:
            self.store.write(SPENT, json.dumps(spent._asdict()).encode())
        except Exception as error:
            log.warning("%s/%s: the hours of this trial are not noted (%s)", self.store.url, SPENT, error)


@dataclass(kw_only=True)
class StopSignal:
    """Returns the status with which a running trial should save its state and end, or empty; called on its first
    worker.
    """

    folder: SweepFolder
    meter: UsageMeter
    deadline_s: float | None
    """Unix time of the deadline."""
    clock: Callable[[], float] = time.time
    beside: Callable[[Callable[[], None]], None] = lambda look: Thread(target=look, daemon=True).start()
    """Runs a poll in the background: training never waits for the store."""
    _noted_s: float = field(init=False)
    _word: CachedPoll = field(init=False)

    def __post_init__(self) -> None:
        self._noted_s = self.clock()
        find = partial(read_ending, self.folder)
        self._word = CachedPoll(find=find, what=ENDING, clock=self.clock, beside=self.beside)

    def __call__(self) -> str:
        now = self.clock()
        if self.deadline_s is not None and now >= self.deadline_s:
            return DEADLINE
        if now - self._noted_s >= NOTE_EVERY_S:
            self._noted_s = now
            self.meter.note(now)
        return self._word()


def read_ending(folder: SweepFolder) -> str:
    """Read the status that running trials should end with; empty to continue. Raises CorruptDataError."""
    found = read_if_there(folder.store, ENDING, ENDING_DOCUMENT, remedy="remove it to go on")
    return "" if found is None else found["status"]


def write_ending(store: Store, status: str) -> None:
    """Write a stop request to a sweep's folder."""
    store.write(ENDING, json.dumps({"status": status}).encode())


def clear_ending(store: Store) -> None:
    """Delete the stop request of an earlier run."""
    store.delete(ENDING)


@dataclass(kw_only=True)
class BudgetMonitor:
    """Monitors deadline, spent hours and stop requests beside the trials of one run of a sweep."""

    folder: SweepFolder
    deadline_s: float | None
    """Unix time of the deadline."""
    cap: Usage
    """Usage limits; infinite where there is none."""
    before: Usage
    """Usage of earlier runs of the sweep."""
    interval_s: float = 2.0
    clock: Callable[[], float] = time.time
    _done: Usage = field(default_factory=Usage)
    _running: dict[str, tuple[Footprint, float]] = field(default_factory=dict)
    _word: str = ""
    """Stop request in the folder, written by this monitor or a user."""
    _looked_s: float = -float("inf")
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _watch: Repeat = field(init=False)

    def __enter__(self) -> BudgetMonitor:
        self._watch = Repeat(work=self._look_and_tell, every_s=self.interval_s, name="budget")
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.stop()

    def changed(self, trial: Trial, started: bool) -> None:
        """Record the start or end of a trial."""
        with self._lock:
            if started:
                self._running[trial.id] = (trial.footprint, self.clock())
            elif trial.id in self._running:
                footprint, began_s = self._running.pop(trial.id)
                self._done = self._done.plus(footprint, self.clock() - began_s)

    def reached(self) -> str:
        """Return the end that was reached, as the status of a trial; empty if none."""
        if self.deadline_s is not None and self.clock() >= self.deadline_s:
            return DEADLINE
        return self._word or reached_cap(self.spent(), self.cap)

    def spent(self) -> Usage:
        """Return the usage of all trials in all runs until now."""
        with self._lock:
            now = self.clock()
            running = [Usage().plus(footprint, now - began_s) for footprint, began_s in self._running.values()]
            return sum_usage([self.before, self._done, *running])

    def _look_and_tell(self) -> None:
        if self._word:
            return
        try:
            self.look()
            self.tell()
        except Exception as error:
            log.warning("%s: cannot be read or written just now (%s)", ENDING, error)

    def look(self) -> None:
        """Poll the folder for a stop request."""
        if self.clock() - self._looked_s >= POLL_EVERY_S:
            self._looked_s = self.clock()
            self._word = read_ending(self.folder)
            if self._word:
                log.info("%s: running trials save their state and end", self._word)

    def tell(self) -> None:
        """Write a stop request for running trials when the hours are spent."""
        status = reached_cap(self.spent(), self.cap)
        if status and not self._word:
            write_ending(self.folder.store, status)
            self._word = status


NO_CAP = Usage(float("inf"), float("inf"))


def reached_cap(spent: Usage, cap: Usage) -> str:
    """Return the status of trials when a cap is reached; empty if none is."""
    if spent.gpu_s >= cap.gpu_s:
        return GPU_HOURS
    return CPU_HOURS if spent.cpu_s >= cap.cpu_s else ""


def budget_monitor(sweep: EndsBlock, folder: SweepFolder, now_s: float) -> BudgetMonitor:
    """Build the monitor of a run of a sweep that starts at `now_s`."""
    hours = (sweep.cpu_hours, sweep.gpu_hours)
    cap = Usage(*(float("inf") if cap is None else cap * SECONDS_PER_HOUR for cap in hours))
    before = _usage_before(folder) if cap != NO_CAP else Usage()
    return BudgetMonitor(folder=folder, deadline_s=sweep.deadline_at_s(now_s), cap=cap, before=before)


def check_budget(sweep: EndsBlock, budget: BudgetMonitor, trials: Sequence[Trial], now_s: float) -> None:
    """Raise UserError if no trial could start, or a cap could never be reached."""
    if budget.deadline_s is not None and budget.deadline_s <= now_s:
        passed, now = in_utc(budget.deadline_s), in_utc(now_s)
        raise UserError(f"deadline: {passed} has passed, it is {now}; give a later one or leave it out")
    check_gpu_hours(sweep, trials)
    for name, hours, spent_s in (
        ("gpu_hours", sweep.gpu_hours, budget.before.gpu_s),
        ("cpu_hours", sweep.cpu_hours, budget.before.cpu_s),
    ):
        if hours is not None and spent_s >= hours * SECONDS_PER_HOUR:
            raise UserError(
                f"{name}: {spent_s / SECONDS_PER_HOUR:.3g} of {hours:g} are spent; raise it or leave it out"
            )


def check_gpu_hours(sweep: EndsBlock, trials: Sequence[Trial]) -> None:
    """Raise UserError for a cap on GPU hours where no trial has a GPU or may still get one."""
    if sweep.gpu_hours is not None and not any(trial.footprint.on_gpu or trial.auto_gpus for trial in trials):
        raise UserError(
            f"gpu_hours: {sweep.gpu_hours:g}, but no trial has a GPU (resources.gpus_per_worker is 0, or auto on a "
            "cluster without GPUs); use cpu_hours"
        )


def _usage_before(folder: SweepFolder) -> Usage:
    """Sum the usage of every trial with a folder, even those no longer in the sweep file."""
    stores = [folder.trial_store(trial) for trial in folder.store.list_folders("trials")]
    return sum_usage(read_many(read_usage, stores))
