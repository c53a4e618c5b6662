"""A checkpoint is saved when the newest is old, at the same step on every rank, however their clocks differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quick_cases import quick
from training_synthetic import on_two_ranks, small_config, small_dataset

from lexray.storage.store import Store
from lexray.training.checkpoint.format import checkpoint_folders, step_of
from lexray.training.config import EveryConfig
from lexray.training.loop.hooks import CheckpointHook, TimedCheckpointHook
from lexray.training.loop.loop import StepRecord
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.axes import Axes
from lexray.training.objectives.forward import BatchSums


@dataclass
class Clock:
    """Seconds that a test sets."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Nothing:
    """Stands for the parts of a save that these tests do not look at: it has no tensors and writes no files."""

    saved: list[int] = field(default_factory=list)

    def state(self) -> list[Any]:
        return []

    def to_write(self, state: list[Any]) -> list[Any]:
        return state

    def save(self, step: int, tensors: dict[str, Any]) -> None:
        self.saved.append(step)


def record(step: int) -> StepRecord:
    return StepRecord(step, BatchSums(1, {}, torch.zeros(1), {}), 0.0, 0.0)


def hooks(clock: Clock, axes: Axes) -> tuple[CheckpointHook, TimedCheckpointHook, Nothing]:
    nothing: Any = Nothing()
    by_step = CheckpointHook(every=100, engine=nothing, share=nothing, writer=nothing, metrics_log=None, clock=clock)
    return by_step, TimedCheckpointHook(every=1, after_s=60, checkpoint=by_step, ranks=axes.pairs), nothing


def test_ranks_save_at_the_same_steps_by_the_clock_of_the_first() -> None:
    def work(rank: int, axes: Axes) -> list[int]:
        clock = Clock()
        _, timed, nothing = hooks(clock, axes)
        for step in range(1, 10):
            clock.now_s += 25 if rank == 0 else 1000
            timed(record(step))
        return nothing.saved

    assert on_two_ranks(work) == [[3, 6, 9], [3, 6, 9]]


def test_a_checkpoint_by_step_counts() -> None:
    def work(rank: int, axes: Axes) -> list[int]:
        clock = Clock()
        by_step, timed, nothing = hooks(clock, axes)
        for step in range(1, 6):
            clock.now_s += 25
            if step == 2:
                by_step(record(step))
            timed(record(step))
        return nothing.saved

    assert on_two_ranks(work) == [[2, 5], [2, 5]]


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize(
    ("checkpoint_s", "expected"), quick([(1e-9, [15, 20]), (1e9, [20]), (None, [20])], [(1e-9, [15, 20])])
)
def test_the_newest_are_kept(checkpoint_s: float | None, expected: list[int], tmp_path: Path) -> None:
    config = small_config(small_dataset(tmp_path / "data"), "topk")
    every = EveryConfig(log=5, evaluate=10, checkpoint=10**6, checkpoint_s=checkpoint_s, eval_rows=128)
    config = replace(config, every=every, rows=20 * config.data.batch_rows)
    Trainer(config=config, store=Store.at(str(tmp_path / "out"))).run()
    assert [step_of(folder) for folder in checkpoint_folders(Store.at(str(tmp_path / "out/checkpoints")))] == expected
