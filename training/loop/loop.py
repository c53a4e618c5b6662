"""The training loop: a generator of step records. All that changes the dictionary is in it; hooks observe.

`step` counts finished optimizer steps, everywhere: step 0 is the untrained dictionary, batch t makes step t into t + 1,
and a record with `step` s was made by batch s - 1.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from lexray.storage.stream import BatchStream
from lexray.training.config import TrainingConfig
from lexray.training.engines.batches import batches_on
from lexray.training.engines.engine import Engine
from lexray.training.engines.resampling import resample_dead
from lexray.training.loop.non_finite import check_loss, gradient_error
from lexray.training.mesh.axes import DataAxis
from lexray.training.mesh.liveness import RowCheck
from lexray.training.objectives.forward import BatchSums, LossOutput


class StepRecord(NamedTuple):
    """One finished step, the same on every rank."""

    step: int
    batch: BatchSums
    lr: float
    train_s: float
    """Seconds spent in steps since the loop began, without those that evaluations and hooks took."""
    grad_norm: Tensor | None = None
    """Norm of the whole gradient, before clipping; None where nothing is differentiated."""
    evaluation: dict[str, float] | None = None
    """Metrics on validation rows after this step, by name; None where it was not evaluated."""

    def metrics(self) -> dict[str, float]:
        """Values to log, under their `train/` names."""
        sums, rows = self.batch.sums, self.batch.rows
        terms = {name: value for name, value in sums.items() if name not in ("error", "variance", "active")}
        values = {
            "fvu": sums["error"] / sums["variance"] if sums["variance"] > 0 else math.nan,
            "l0": sums["active"] / rows,
            "lr": self.lr,
            **({} if self.grad_norm is None else {"grad_norm": float(self.grad_norm)}),
            **terms,
            **{name: float(value) for name, value in self.batch.observed.items()},
        }
        return {f"train/{name}": value for name, value in values.items()}


def training_steps(
    config: TrainingConfig,
    stream: BatchStream,
    engine: Engine,
    rows: DataAxis,
    *,
    start: int,
    check: RowCheck | None = None,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> Generator[StepRecord]:
    """Train from step `start` to the end. Raises NonFiniteStepError, on every rank, in place of a step that is not.

    `evaluate` returns metrics on validation rows. Every `every.evaluate` steps the dictionary hears them, which is all
    that a training learns from such rows.
    """
    dictionary, num_steps, train_s = engine.dictionary, config.num_steps, 0.0
    with closing(batches_on(engine.device, stream, config.data, range(start, num_steps))) as batches:
        for step in range(start, num_steps):
            began = time.perf_counter()
            raw, total_rows, row_ids = next(batches)
            if check is not None:
                check(step, row_ids)
            lr = config.optimizer.lr_at(step, num_steps, config.dictionary.width)
            dictionary.at_step(step, num_steps)
            sums = global_sums(engine.backward(raw, total_rows), total_rows, rows)
            check_loss(step + 1, sums.sums, engine.gradient_norm(), dictionary.latents)
            if not engine.step(lr):
                raise gradient_error(step + 1, sums.sums, engine.gradient_norm())
            dictionary.after_step(sums)
            resample_dead(engine, raw, total_rows, rows)
            train_s += time.perf_counter() - began
            evaluation = None
            if evaluate is not None and is_due(config.every.evaluate, step + 1, num_steps):
                evaluation = evaluate()
                dictionary.after_evaluation(evaluation)
            yield StepRecord(step + 1, sums, lr, train_s, engine.gradient_norm(), evaluation)


def global_sums(terms: LossOutput, total_rows: int, rows: DataAxis) -> BatchSums:
    """Add up the ranks' parts, in one reduction."""
    named = {"loss": terms.loss.detach(), **terms.sums}
    scalars = torch.stack([value.float() for value in named.values()])
    total = rows.all_reduce(torch.cat([scalars, terms.fired_F.float()]))
    values = total[: len(named)].tolist()
    return BatchSums(total_rows, dict(zip(named, values, strict=True)), total[len(named) :], terms.observed)


def is_due(every: int, step: int, num_steps: int) -> bool:
    """Whether what happens every so many steps, and after the last one, happens after `step`."""
    return step % every == 0 or step == num_steps
