"""Times the training and evaluation steps of a dictionary on rows in memory, for `data bench` and `plan`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

import torch

from lexray.storage.bench import median_seconds
from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest
from lexray.storage.stream import Batch, BatchStream, local_stream
from lexray.training.config import DataConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries.base import Dictionary, DictionaryConfig, RawRows
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.engine import Engine
from lexray.training.loop.build import build_dictionary, ensure_process_group, make_engine
from lexray.training.loop.loop import StepRecord, training_steps
from lexray.training.loop.non_finite import NonFiniteStepError
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.device import device_of_command
from lexray.training.mesh.mesh import ONE_RANK

MANY_STEPS = 10**6
"""Nominal steps of the timed training; so many that its schedules hardly move meanwhile."""
SAMPLE_BATCHES = 4
"""Batches in memory, used in rotation."""
T = TypeVar("T")


@dataclass(frozen=True)
class HeldBatches:
    """The part of the `BatchStream` interface that training reads, over a few batches in memory."""

    held: list[Batch]

    def batches(self, steps: range, ready: Callable[[Batch], T]) -> Generator[T]:
        yield from (ready(self.held[step % len(self.held)]) for step in steps)


class StepTimer:
    """A single worker that runs the training loop of one dictionary on a few batches."""

    def __init__(
        self,
        data: DataConfig,
        dictionary: DictionaryConfig,
        manifest: Manifest,
        optimizer: OptimizerConfig | None = None,
        device: torch.device | None = None,
    ) -> None:
        """`device`: None selects this machine's first GPU, or its CPUs without one."""
        self.device = device_of_command() if device is None else device
        ensure_process_group(self.device)
        self.manifest = manifest
        self.config = TrainingConfig(
            dictionary=dictionary,
            data=data,
            rows=MANY_STEPS * data.batch_rows,
            optimizer=optimizer or OptimizerConfig(),
        )

    @cached_property
    def batches(self) -> list[Batch]:
        data = self.config.data
        stream = local_stream(data.stream_spec("train"), batch_rows=data.batch_rows)
        return [stream.batch(step) for step in range(min(SAMPLE_BATCHES, stream.steps_per_epoch))]

    @cached_property
    def rows(self) -> list[RawRows]:
        return [raw_rows(batch, self.config.data, self.device) for batch in self.batches]

    @cached_property
    def dictionary(self) -> Dictionary:
        made = build_dictionary(self.config, self.manifest).to(self.device)
        if made.needs_sample:
            made.prepare(lambda: self.rows)
        return made

    @cached_property
    def engine(self) -> Engine:
        return make_engine(self.dictionary, self.config, ONE_RANK)

    def trained_rows_per_s(self, seconds: float) -> float:
        """Return the rows per second that one worker trains, from whole steps measured for about `seconds`."""
        return self.config.data.batch_rows / median_seconds(self.step, seconds)

    def evaluated_rows_per_s(self, seconds: float) -> float:
        """Return the rows per second that one worker evaluates."""
        return self.config.data.batch_rows / median_seconds(self._evaluate, seconds)

    @cached_property
    def _training(self) -> Generator[StepRecord]:
        stream = cast(BatchStream, HeldBatches(self.batches))
        return training_steps(self.config, stream, self.engine, LOCAL_DATA, start=0)

    def step(self) -> None:
        """Take one step of the training loop. Raises UserError where the loss is not finite."""
        try:
            next(self._training)
        except NonFiniteStepError as error:
            raise UserError(f"{self.config.dictionary.architecture}: cannot be timed, {error}") from error

    def _evaluate(self) -> None:
        with self.engine.whole_parameters():
            evaluate(self.dictionary, self.rows[:1], LOCAL_DATA, sites=self.config.data.reconstructed)
