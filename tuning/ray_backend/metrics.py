"""Metrics published by the trials and the driver of a sweep, see `lexray.tuning.ray_backend.publisher`."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lexray.storage.objects.retries import retried_calls
from lexray.training.loop.hooks import LogInterval
from lexray.tuning.ray_backend.publisher import Publisher, Sample
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.sweep_folder import FAILED, PENDING, RUNNING, TrialRecord

FINISHED_BEFORE = "finished before"
"""Status of the trials that an earlier run of the sweep finished."""


class TrainingMetrics:
    """Speed, data wait and quality of one attempt at a trial, published inside of its context by its first worker."""

    def __init__(self, run: TrialRun) -> None:
        trial = run.trial
        tags = {
            "sweep": run.sweep,
            "trial": trial.id,
            "trial_name": trial.name,
            "architecture": trial.config.dictionary.architecture,
        }
        self._publisher = Publisher(tags=tags, samples=self.samples)
        self._totals = Counter[str]()
        self._gauges: dict[str, float] = {}
        self._retries_before = retried_calls()

    def add(self, interval: LogInterval) -> None:
        """Count what was done since the last log."""
        record = interval.record
        totals = {
            "lexray_steps_total": interval.steps,
            "lexray_rows_total": interval.rows,
            "lexray_step_seconds_total": interval.step_s,
            "lexray_data_wait_seconds_total": interval.step_s * record.get("data/wait", 0.0),
        }
        self._totals = self._totals + Counter(totals)  # a new one: the thread reads the old one to its end
        self._gauges = {
            f"lexray_{name}": record[f"train/{name}"] for name in ("fvu", "l0") if f"train/{name}" in record
        }

    def samples(self) -> list[Sample]:
        retries = Sample("lexray_store_retries_total", retried_calls() - self._retries_before)
        return [retries, *(Sample(*item) for values in (self._totals, self._gauges) for item in values.items())]

    def __enter__(self) -> TrainingMetrics:
        self._publisher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._publisher.close()


class StatusMetrics:
    """Follows a sweep, see `lexray.tuning.views.follow.Listener`: its trials by status, published by its driver."""

    def __init__(self, *, sweep: str, num_trials: int, num_finished: int) -> None:
        self._statuses = Counter({PENDING: num_trials - num_finished, RUNNING: 0, FINISHED_BEFORE: num_finished})
        self._publisher = Publisher(tags={"sweep": sweep}, samples=self.samples)
        self._publisher.start()

    def started(self, run: TrialRun) -> None:
        self._move(PENDING, RUNNING)

    def logged(self, run: TrialRun, records: list[dict[str, Any]]) -> None:
        """Do nothing: the trial's first worker publishes its own metrics."""

    def ended(self, run: TrialRun, record: TrialRecord | None) -> None:
        self._move(RUNNING, record.status if record is not None else FAILED)

    def close(self) -> None:
        self._publisher.close()

    def samples(self) -> list[Sample]:
        statuses = dict(self._statuses)
        return [Sample("lexray_trials", number, (("status", status),)) for status, number in statuses.items()]

    def _move(self, before: str, after: str) -> None:
        self._statuses[before] -= 1
        self._statuses[after] += 1
