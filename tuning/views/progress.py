"""The terminal's view of a running sweep: live on a terminal, quiet lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.results.columns import MISSING
from lexray.tuning.sweep_folder import FAILED, PAUSED, STOPPED, TrialRecord


@dataclass(kw_only=True)
class _Running:
    run: TrialRun
    values: dict[str, Any] = field(default_factory=dict)
    """Newest value of each name."""
    told_at: float = -float("inf")


@dataclass(kw_only=True)
class TerminalView:
    """Follows a sweep, see `lexray.tuning.views.follow.Listener`: trials, step, rows/s, L0 and FVU."""

    console: Console
    num_trials: int
    num_reused: int = 0
    line_every_s: float = 30.0
    """On something that is not a terminal: one line per running trial at most this often."""
    clock: Callable[[], float] = time.monotonic
    _running: dict[str, _Running] = field(default_factory=dict)
    _live: Live | None = None

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("trials"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
        )
        self._task = self._progress.add_task("trials", total=self.num_trials, completed=self.num_reused)

    def started(self, run: TrialRun) -> None:
        self._running[run.trial.id] = _Running(run=run)
        self._refresh()

    def logged(self, run: TrialRun, records: list[dict[str, Any]]) -> None:
        running = self._running[run.trial.id]
        for record in records:
            running.values |= record
        if not self.console.is_terminal and self.clock() - running.told_at >= self.line_every_s:
            running.told_at = self.clock()
            self.console.print(_line(running), highlight=False, soft_wrap=True)
        self._refresh()

    def ended(self, run: TrialRun, record: TrialRecord | None) -> None:
        self._running.pop(run.trial.id, None)
        self._progress.advance(self._task)
        self.console.print(_end_line(run, record), highlight=False, soft_wrap=True)
        self._refresh()

    def close(self) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def _refresh(self) -> None:
        if not self.console.is_terminal:
            return
        if self._live is None:  # only once a trial started: until then the sweep may still be refused
            self._live = Live(console=self.console, refresh_per_second=2, transient=True)
            self._live.start()
        self._live.update(self._render())

    def _render(self) -> Group:
        table = Table("running trial", "workers", "step", "rows/s", "L0", "FVU", box=None, pad_edge=False)
        for running in self._running.values():
            table.add_row(*_cells(running))
        return Group(table, self._progress)


def _cells(running: _Running) -> list[str]:
    trial, values = running.run.trial, running.values
    if "step" not in values:
        return [trial.name, str(trial.footprint.workers), "starting", "", "", ""]
    return [
        trial.name,
        str(trial.footprint.workers),
        f"{values['step']}/{trial.config.num_steps}",
        _number(values.get("perf/rows_per_s"), "{:,.0f}"),
        _number(values.get("train/l0"), "{:.1f}"),
        _number(values.get("train/fvu"), "{:.4f}"),
    ]


def _line(running: _Running) -> str:
    name, _, step, speed, l0, fvu = _cells(running)
    return f"{name}: step {step}, {speed} rows/s, L0 {l0}, FVU {fvu}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _end_line(run: TrialRun, record: TrialRecord | None) -> Text:
    name = run.trial.name
    if record is not None and record.status in (STOPPED, *PAUSED):
        return Text.assemble((record.status, "yellow"), f" {name}: {record.reason}")
    if record is None or record.status == FAILED or not record.result:
        reason = record.reason if record is not None and record.reason else "ended without a word"
        return Text.assemble(("failed", "red"), f" {name}: {reason}")
    l0, fvu = (_number(record.result.get(key), form) or MISSING for key, form in (("l0", "{:.1f}"), ("fvu", "{:.4f}")))
    result = f"L0 {l0}, FVU {fvu}, {record.timing.get('total_s', 0.0):.0f} s"
    note = (f" {record.status}: {record.reason}", "yellow") if record.reason else ""
    return Text.assemble(("ended", "green"), f"  {name}: {result}", note)
