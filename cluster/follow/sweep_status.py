"""The status of a sweep from its folder: driver, progress and speed of each trial, and reasons for waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lexray.storage.documents import parse_lines
from lexray.storage.polling import read_many
from lexray.storage.store import Store
from lexray.training.loop.metrics_log import LINE, METRICS
from lexray.tuning.driver_record import RUNNING as DRIVEN
from lexray.tuning.driver_record import DriverRecord, is_alive, read_driver
from lexray.tuning.planning.outcome import read_plan
from lexray.tuning.sweep_folder import FINISHED, PENDING, RUNNING, SweepFolder, TrialRecord

TAIL_BYTES = 64 * 1024
"""Bytes read of metrics.jsonl, from its end."""
LOST, UNKNOWN = "lost", "unknown"
"""States in addition to the driver's own: its heartbeat is overdue; no driver record exists."""
LEFT = "left"
"""State of a trial that was running when its driver was lost; it resumes with the sweep."""


@dataclass(frozen=True, kw_only=True)
class TrialStatus:
    """Status of one trial."""

    id: str
    name: str
    status: str
    reason: str = ""
    step: int = 0
    """Finished steps."""
    steps: int = 0
    batch_rows: int = 0
    rows_per_s: float | None = None
    """Recent speed; None if the trial is not running."""
    data_wait: float | None = None
    """Recent share of time spent waiting for data."""

    @property
    def is_over(self) -> bool:
        """Whether the trial has no steps left."""
        return self.status in FINISHED or self.status == "stopped early"


@dataclass(frozen=True, kw_only=True)
class SweepStatus:
    """Status of a sweep at one time."""

    url: str
    state: str
    """running, ended, failed, interrupted, lost or unknown."""
    driver: DriverRecord | None
    silent_s: float | None
    """Seconds since the driver's last heartbeat."""
    trials: list[TrialStatus] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Trials by status."""
        return dict(Counter(trial.status for trial in self.trials))

    @property
    def steps(self) -> tuple[int, int]:
        """Finished and total steps; a trial that was stopped early counts its finished steps only."""
        return sum(t.step for t in self.trials), sum(t.step if t.is_over else t.steps for t in self.trials)

    @property
    def rows_per_s(self) -> float:
        """Rows per second of all running trials."""
        return sum(trial.rows_per_s or 0.0 for trial in self.trials)

    @property
    def data_wait(self) -> float | None:
        """Largest data wait of a running trial, as a share of its time."""
        return max((trial.data_wait for trial in self.trials if trial.data_wait is not None), default=None)

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to the end at the current speed; None if nothing runs."""
        done, steps = self.steps
        batch_rows = max((trial.batch_rows for trial in self.trials), default=0)
        return (steps - done) * batch_rows / self.rows_per_s if self.rows_per_s else None

    def to_dict(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        done, steps = self.steps
        sums = {"counts": self.counts, "steps_done": done, "steps": steps, "rows_per_s": self.rows_per_s}
        waits = {"data_wait": self.data_wait, "left_s": self.left_s, "report": f"{self.url}/report.html"}
        return asdict(self) | sums | waits


def sweep_status(folder: SweepFolder, now_s: float) -> SweepStatus:
    """Read the sweep's status from its folder at Unix time `now_s`."""
    driver = read_driver(folder.store)
    state = state_of(driver, now_s)
    planned = {trial["id"]: trial for trial in (read_plan(folder.store) or {}).get("trials", [])}
    ids = list(dict.fromkeys([*planned, *folder.store.list_folders("trials")]))
    trials = read_many(lambda trial: _trial(folder, trial, planned.get(trial, {}), state), ids)
    silent_s = None if driver is None else max(0.0, now_s - driver.seen_s)
    return SweepStatus(url=folder.store.url, state=state, driver=driver, silent_s=silent_s, trials=trials)


def state_of(driver: DriverRecord | None, now_s: float) -> str:
    """Return the state of a sweep from its driver's record."""
    if driver is None:
        return UNKNOWN
    return LOST if driver.state == DRIVEN and not is_alive(driver, now_s) else driver.state


def _trial(folder: SweepFolder, trial: str, planned: Mapping[str, Any], state: str) -> TrialStatus:
    record = folder.read_trial(trial)
    if record is None:
        name, steps = str(planned.get("name", trial)), int(planned.get("steps", 0))
        return TrialStatus(id=trial, name=name, status=PENDING, steps=steps)
    newest = newest_records(folder.trial_store(trial))
    return _told(record, newest, int(planned.get("steps", 0)), is_driven=state == DRIVEN)


def _told(record: TrialRecord, newest: Sequence[dict[str, Any]], steps: int, *, is_driven: bool) -> TrialStatus:
    is_running = record.status == RUNNING
    values = {name: value for line in newest for name, value in line.items()} if is_running and is_driven else {}
    data = record.config.get("data", {})
    step = int(newest[-1]["step"]) if newest else 0
    batch_rows = int(data.get("batch_rows", 0))
    steps = steps or _steps(record.config, batch_rows)
    return TrialStatus(
        id=record.trial,
        name=record.name,
        status=LEFT if is_running and not is_driven else record.status,
        reason=record.reason,
        step=steps if record.status in FINISHED else step,
        steps=steps,
        batch_rows=batch_rows,
        rows_per_s=values.get("perf/rows_per_s"),
        data_wait=values.get("data/wait"),
    )


def _steps(config: Mapping[str, Any], batch_rows: int) -> int:
    return -(-int(config.get("rows", 0)) // batch_rows) if batch_rows else 0


def newest_records(store: Store) -> list[dict[str, Any]]:
    """Return the trial's newest logged records in step order; empty if there are none."""
    size = store.size(METRICS)
    if not size:
        return []
    start = max(0, size - TAIL_BYTES)
    try:
        lines = store.read_range(METRICS, start, size - start).split(b"\n")
    except FileNotFoundError:
        return []
    whole = b"\n".join(line for line in lines[bool(start) :] if line.endswith(b"}"))
    return parse_lines(whole, LINE, f"{store.url}/{METRICS}, its last records", remedy="remove it to go on without it")
