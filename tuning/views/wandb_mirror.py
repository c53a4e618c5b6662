"""Mirrors a sweep to W&B from the trials' logged records. It runs in the sweep's driver, beside the trials.

W&B may be slow or hang: a separate thread makes all calls, and only the end of the sweep waits for it, briefly. What
did not arrive can be sent later from the sweep's folder (`send`).
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from lexray.storage.errors import named_line
from lexray.training.measures.held_out import read_measures
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.results.measured import summary
from lexray.tuning.results.report import FIGURE_FILE
from lexray.tuning.sweep_folder import SweepFolder, TrialRecord
from lexray.tuning.views.wandb_runs import MAX_FAILURES_IN_A_ROW, Described, WandbRuns

log = logging.getLogger("lexray")

PATIENCE_S = 30.0
"""Seconds that the end of a sweep waits for W&B. A pending call delays the end of the process by at most
`FINISH_TIMEOUT_S` more."""


@dataclass(kw_only=True)
class WandbMirror:
    """Follows a sweep, see `lexray.tuning.views.follow.Listener`."""

    runs: WandbRuns
    patience_s: float = PATIENCE_S
    _calls: queue.SimpleQueue[Callable[[], None] | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None
    _given_up: threading.Event = field(default_factory=threading.Event)

    @property
    def links(self) -> dict[str, str]:
        """W&B pages of the trials' online runs, by trial id."""
        return self.runs.links

    def started(self, run: TrialRun) -> None:
        trial = run.trial
        about = Described(trial.id, trial.name, trial.config.to_dict(), trial.footprint.workers)
        self._later(lambda: self.runs.start(about))

    def logged(self, run: TrialRun, records: list[dict[str, Any]]) -> None:
        self._later(lambda: self.runs.log(run.trial.id, records))

    def ended(self, run: TrialRun, record: TrialRecord | None) -> None:
        def finish() -> None:
            measures = trial_measures(run.folder, run.trial.id) if record is not None else {}
            self.runs.finish(run.trial.id, record, measures)

        self._later(finish)

    def close(self) -> None:
        """Do nothing: the sweep's results follow its trials."""

    def show_results(self, folder: SweepFolder, table: pd.DataFrame) -> None:
        """Upload the results, and wait until W&B has everything, for at most `patience_s`."""
        if self._thread is None:
            return
        self._later(lambda: self.runs.show_sweep(folder.store.url, table, folder.store.read(FIGURE_FILE)))
        self.finish(folder.store.url)

    def finish(self, url: str) -> None:
        """Wait for pending calls."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._calls.put(self.runs.finish_all)
        self._calls.put(None)
        thread.join(self.patience_s)
        if thread.is_alive():
            self._given_up.set()
            self.runs.falls_back = False
            log.warning("W&B has not taken everything in %.0f s: `lexray wandb sync %s` sends it", self.patience_s, url)

    def _later(self, call: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="W&B", daemon=True)
            self._thread.start()
        self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None and not self._given_up.is_set():
            try:
                call()
            except Exception as error:
                if not self._given_up.is_set():
                    log.warning("W&B: %s (`lexray wandb sync` sends what it lacks)", named_line(error))


def trial_measures(folder: SweepFolder, trial: str) -> dict[str, float]:
    """Return the measures of a trial for the summary of its run; empty if it was not measured."""
    document = read_measures(folder.trial_store(trial))
    return summary(document) if document is not None else {}


def send(
    folder: SweepFolder, runs: WandbRuns, table: pd.DataFrame, on_sent: Callable[[str, int], None]
) -> dict[str, str]:
    """Create W&B's runs from the sweep's folder; `on_sent` gets each trial's name and its number of records.

    Existing runs get only missing records. Returns the reason by name of each run that W&B refused; after
    `MAX_FAILURES_IN_A_ROW` refusals nothing more is sent.
    """
    refused: dict[str, str] = {}
    failures_in_a_row = 0
    for trial in folder.store.list_folders("trials"):
        record = folder.read_trial(trial)
        if record is None:
            continue
        records = folder.read_metrics(trial)
        try:
            runs.start(Described(trial, record.name, record.config, record.workers))
            runs.log(trial, records)
            runs.finish(trial, record, trial_measures(folder, trial))
        except Exception as error:
            refused[record.name] = named_line(error)
            failures_in_a_row += 1
            if failures_in_a_row == MAX_FAILURES_IN_A_ROW:
                return refused  # each further run would wait for the same time-out
            continue
        failures_in_a_row = 0
        on_sent(record.name, len(records))
    try:
        runs.show_sweep(folder.store.url, table, folder.store.read(FIGURE_FILE))
    except Exception as error:
        refused["the sweep's own"] = named_line(error)
    return refused
