"""The folder of a sweep: the source of truth about it, on any store.

sweep.yaml                     the sweep file as run
trials/TRIAL/trial.json        configuration, status and result (TrialRecord)
trials/TRIAL/attempt.json      the attempt at it that owns the folder (lexray.tuning.fence)
trials/TRIAL/rungs.json        metrics and decisions of early stopping (lexray.tuning.endings.early_stopper)
trials/TRIAL/spent.json        hours of its workers over all attempts (lexray.tuning.endings.budget)
trials/TRIAL/metrics.jsonl     one JSON object per logged step (storage of `lexray.training.loop.metrics_log`)
trials/TRIAL/non_finite.json   that it resumed after a step that was not finite (lexray.training.loop.non_finite)
trials/TRIAL/checkpoints/      see lexray.training.checkpoint.format
trials/TRIAL/initial/          atoms at step 0 where data gives them (lexray.training.checkpoint.initial)
trials/TRIAL/dictionary/       the trained dictionary: config.json, dictionary.safetensors
trials/TRIAL/measures.json     measures of it at the end, see training.measures; fired.npy: rows of each latent
wandb.json                     ids of this folder's runs in W&B (lexray.tuning.views.wandb_ids)
dataset.json                   provenance of the dataset (lexray.tuning.results.provenance)
plan.json                      estimates of the sweep (lexray.tuning.planning.plan)
driver.json, log.txt           record and log of its driver (lexray.tuning.driver_record, lexray.tuning.driver)
ending.json                    stop request for its driver and trials (lexray.tuning.endings.budget)
frontier.parquet, .csv, .png, .svg; stability.json; plan.json; report.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from lexray.storage.anonymous import without_home, without_names
from lexray.storage.documents import Count, Finite, Number, Plain, read_lines
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.json_values import with_nulls
from lexray.storage.store import Store, reachable
from lexray.training.checkpoint.saved import CONFIG as DICTIONARY_CONFIG
from lexray.training.loop.metrics_log import LINE, METRICS
from lexray.training.loop.metrics_log import MAX_BYTES as METRICS_BYTES
from lexray.tuning.folder_documents import Config, Curve, read_if_there

DONE, TARGET_MISSED, FAILED, RUNNING, PENDING = "done", "target missed", "failed", "running", "pending"
FINISHED = (DONE, TARGET_MISSED)
"""Statuses of trials that are never trained again."""
MOVING = "moving"
"""Status between two attempts: the state is saved, and the trial resumes at once on other nodes."""
STOPPED = "stopped early"
"""Status of a trial that is not trained again while the sweep file's `stop` is unchanged."""
PAUSED = ("stopped: deadline", "stopped: gpu_hours", "stopped: cpu_hours", "stopped: by hand")
"""Statuses of trials that resume from their checkpoint when the sweep is rerun."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """Contents of `trial.json`."""

    trial: str
    """Id: a hash of the configuration."""
    name: str
    """Display name: `topk-1536-l0-16`."""
    config: Config
    """Plain nested values: `dictionary` (architecture, width, target_l0, ...), `data`, `optimizer`, ..."""
    point: dict[str, Plain] = field(default_factory=dict)
    """Point on the sweep's axes."""
    number: Count | None = None
    """Index in a search that proposed points while the sweep ran."""
    status: str = PENDING
    reason: str = ""
    """Reason of a failure, or the L0 reached instead of the target."""
    workers: Count = 1
    result: dict[str, Number] = field(default_factory=dict)
    """Final metrics on test rows: l0, fvu, explained_variance, dead_fraction; None for an undefined one."""
    validation: dict[str, Number] = field(default_factory=dict)
    """The same metrics on validation rows, which steered the training. Empty in a record from before held-out documents
    were split: there `result` is of all of them."""
    curve: Curve = field(default_factory=list)
    """The same metrics at other numbers of active latents, `k`, if the architecture supports them."""
    stopped: dict[str, Plain] = field(default_factory=dict)
    """The decision that stopped it early: rule, rung, step, the trial that beat it, both numbers, and the `rules`."""
    timing: dict[str, Finite] = field(default_factory=dict)
    """Seconds: `total_s` wall time of the trial, `train_s` spent in training steps; `rows_per_s`."""
    memory: dict[str, Finite] = field(default_factory=dict)
    """`peak_bytes` of the first worker's process in its last attempt, including mapped memory."""

    @property
    def reported_on(self) -> str:
        """Description of the rows that `result` is of."""
        return "test rows" if self.validation else "all held-out rows"


_TRIAL = TypeAdapter(TrialRecord)


@dataclass(frozen=True)
class SweepFolder:
    """Reads and writes the folder of one sweep."""

    store: Store

    @staticmethod
    def existing(url: str) -> SweepFolder:
        """Open the folder of an existing sweep. Raises UserError if there is none."""
        store = Store.at(url)
        with reachable("sweep", store.url):
            is_there = store.exists("sweep.yaml")
        if not is_there:
            raise UserError(f"{store.url}: no sweep there (it would hold sweep.yaml)")
        return SweepFolder(store)

    def trial_store(self, trial: str) -> Store:
        return self.store.at_path(f"trials/{trial}")

    def write_trial(self, record: TrialRecord) -> None:
        content = with_nulls(without_home(asdict(record)) | {"reason": without_names(record.reason)})
        self.trial_store(record.trial).write("trial.json", json.dumps(content, indent=1).encode())

    def read_trial(self, trial: str) -> TrialRecord | None:
        """Read the record; None if the trial never started. Raises CorruptDataError."""
        file, remedy = f"trials/{trial}/trial.json", "remove it to train the trial again"
        record = read_if_there(self.trial_store(trial), "trial.json", _TRIAL, file=file, remedy=remedy)
        if record is not None and record.trial != trial:
            raise CorruptDataError(f"{file}: trial: {record.trial!r}, but its folder is called {trial!r}; {remedy}")
        return record

    def is_finished(self, trial: str, stop_rules: Mapping[str, Any] | None = None) -> bool:
        """Return whether the trial was trained to its end, or stopped under these rules, and its dictionary exists."""
        record = self.read_trial(trial)
        return (
            record is not None
            and (record.status in FINISHED or _is_stopped_under(record, stop_rules))
            and self.trial_store(trial).exists(f"dictionary/{DICTIONARY_CONFIG}")
        )

    def read_metrics(self, trial: str) -> list[dict[str, Any]]:
        """Read the trial's logged records in step order; empty if there are none."""
        file, remedy = f"trials/{trial}/{METRICS}", "remove it to go on without it"
        store = self.trial_store(trial)
        try:
            return read_lines(store, METRICS, LINE, file=file, remedy=remedy, max_bytes=METRICS_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return []


def _is_stopped_under(record: TrialRecord, stop_rules: Mapping[str, Any] | None) -> bool:
    return record.status == STOPPED and stop_rules is not None and record.stopped.get("rules") == stop_rules
