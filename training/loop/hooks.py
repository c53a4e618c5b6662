"""Observers of a training: what is logged and saved every so many steps. None changes the dictionary or the stream.

Every rank calls every hook that is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch

from lexray.training.checkpoint.parts import ShardSpec
from lexray.training.checkpoint.writer import CheckpointWriter
from lexray.training.engines.engine import Engine
from lexray.training.loop.data_traffic import DataTraffic
from lexray.training.loop.loop import StepRecord, is_due
from lexray.training.loop.metrics_log import MetricsLog
from lexray.training.mesh.axes import WorldAxis
from lexray.training.mesh.mesh import Mesh


class Hook(Protocol):
    """Something that happens every so many steps, and after the last one."""

    every: int

    def __call__(self, record: StepRecord) -> None: ...


def run_hooks(hooks: Sequence[Hook], record: StepRecord, num_steps: int) -> None:
    """Call the hooks that are due, in order. Decided by the step alone, so every rank calls the same ones."""
    for hook in hooks:
        if is_due(hook.every, record.step, num_steps):
            hook(record)


Emit = Callable[[dict[str, float]], None]
"""Receives a record: `step`, `rows` and named values. Does nothing on ranks other than 0."""


class LogInterval(NamedTuple):
    """Steps of a training between two logs."""

    steps: int
    rows: int
    """Rows that all ranks trained on."""
    step_s: float
    """Seconds spent in these steps."""
    record: dict[str, float]
    """Record that was logged after them."""


@dataclass(kw_only=True)
class LogHook:
    """Training values, speed since the last log, and what the data cost."""

    every: int
    traffic: DataTraffic
    mesh: Mesh
    emit: Emit
    step: int
    """The step at the last log; at first, where training started."""
    on_log: Callable[[LogInterval], None] = lambda interval: None
    train_s: float = 0.0
    """Seconds spent in steps until the last log."""
    _moved_bytes: int = 0

    def __call__(self, record: StepRecord) -> None:
        elapsed = max(record.train_s - self.train_s, 1e-9)
        steps = record.step - self.step
        self.step, self.train_s = record.step, record.train_s
        rows = steps * record.batch.rows
        values = {
            "step": record.step,
            "rows": record.step * record.batch.rows,
            **record.metrics(),
            "perf/rows_per_s": rows / elapsed,
            **self._moved(steps),
            **self.traffic.since_last(elapsed),
        }
        self.emit(values)
        self.on_log(LogInterval(steps, rows, elapsed, values))

    def _moved(self, steps: int) -> dict[str, float]:
        """MB that this rank gave to the mesh's collectives per step; the engine's own reductions are a formula."""
        moved, self._moved_bytes = self.mesh.traffic.bytes - self._moved_bytes, self.mesh.traffic.bytes
        return {"perf/mesh_mb_per_step": moved / 1e6 / max(1, steps)} if self.mesh.place.size > 1 else {}


@dataclass(kw_only=True)
class EvaluationHook:
    """The metrics on validation rows that the loop computed."""

    every: int
    traffic: DataTraffic
    emit: Emit
    on_evaluation: Emit
    """Called on every rank."""

    def __call__(self, record: StepRecord) -> None:
        assert record.evaluation is not None, "the hook is due when the loop evaluates"
        values = {f"eval/{name}": value for name, value in record.evaluation.items() if name != "rows"}
        values["data/bytes_read"] = self.traffic.bytes_read()  # after the last step nobody else says it
        values = {"step": record.step, "rows": record.step * record.batch.rows, **values}
        self.emit(values)
        self.on_evaluation(values)


@dataclass(kw_only=True)
class CheckpointHook:
    """The whole state, of which every rank writes its rows.

    What was logged is written first, so that a resumed trial has every record up to its checkpoint.
    """

    every: int
    engine: Engine
    share: ShardSpec
    writer: CheckpointWriter
    metrics_log: MetricsLog | None
    """None on ranks other than 0."""
    clock: Callable[[], float] = time.monotonic
    _saved: int | None = None
    """Step of the last save."""
    _saved_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._saved_at_s = self.clock()

    @property
    def age_s(self) -> float:
        """Seconds since the last save began, or training did."""
        return self.clock() - self._saved_at_s

    def __call__(self, record: StepRecord) -> None:
        self.save(record.step)

    def save(self, step: int) -> None:
        """Begin to save the state after `step`, unless that was done."""
        if step == self._saved:
            return
        self._saved, self._saved_at_s = step, self.clock()
        mine = {
            key: part._replace(tensor=part.tensor.detach().to("cpu", copy=True))
            for key, part in self.share.to_write(self.engine.state())
        }
        if self.metrics_log is not None:
            self.metrics_log.flush()
        self.writer.save(step, mine)


@dataclass(kw_only=True)
class TimedCheckpointHook:
    """Saves when the newest checkpoint is old, however few steps that was: by the clock of rank 0, which tells all."""

    every: int
    after_s: float
    checkpoint: CheckpointHook
    ranks: WorldAxis

    def __call__(self, record: StepRecord) -> None:
        is_old = torch.tensor([float(self.checkpoint.age_s >= self.after_s)])
        if self.ranks.gather(is_old)[0].item():
            self.checkpoint.save(record.step)
