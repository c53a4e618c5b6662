"""Train one dictionary on this rank's share of a mesh: build, resume, run the loop, save."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from lexray.storage.store import Store
from lexray.storage.stream import BatchStream, local_stream
from lexray.training.checkpoint.resume import new_attempt
from lexray.training.checkpoint.saved import describe_dictionary
from lexray.training.checkpoint.writer import CheckpointWriter
from lexray.training.config import TrainingConfig
from lexray.training.loop.build import place_in
from lexray.training.loop.data_traffic import DataTraffic
from lexray.training.loop.evaluator import Evaluator
from lexray.training.loop.hooks import (
    CheckpointHook,
    Emit,
    EvaluationHook,
    Hook,
    LogHook,
    LogInterval,
    TimedCheckpointHook,
    run_hooks,
)
from lexray.training.loop.loop import StepRecord, training_steps
from lexray.training.loop.metrics_log import MetricsLog
from lexray.training.loop.non_finite import NonFiniteStepError, resume_once
from lexray.training.loop.publish import publish
from lexray.training.loop.result import TrainingResult
from lexray.training.loop.setup import OpenStream, Setup, open_part, read_locally, set_up
from lexray.training.loop.stopping import DONE, Ending, StopCheck
from lexray.training.mesh.device import CPU
from lexray.training.mesh.liveness import BEAT_S, SILENT_AFTER_BEATS, Alone, RowCheck, Watch
from lexray.training.mesh.mesh import connect

PATIENCE_S = 20.0
"""Seconds that a save under way waits for other ranks' parts after the training has failed."""


class Observers(NamedTuple):
    """Hooks, logs and checkpoints of a training. None of them changes the dictionary."""

    hooks: list[Hook]
    """In the order in which they are called."""
    log: LogHook
    checkpoint: CheckpointHook
    writer: CheckpointWriter
    metrics_log: MetricsLog | None
    """None on ranks other than 0."""
    emit: Emit
    """Writes to it."""
    stops: list[StopCheck]


@dataclass(kw_only=True)
class Trainer:
    """One rank of one dictionary's training. The process group must exist already."""

    config: TrainingConfig
    store: Store
    """Folder of the trial."""
    trial: str = ""
    """Id of the trial, for people who find the dictionary."""
    open_stream: OpenStream = read_locally
    on_evaluation: Emit = lambda record: None
    """Called on every rank with the record of every evaluation on validation rows."""
    on_log: Callable[[LogInterval], None] = lambda interval: None
    """Called on every rank after every log."""
    should_stop: Callable[[Sequence[dict[str, Any]]], str] | None = None
    """Given the records so far after an evaluation: why the training ends here for good, empty to go on. None on every
    rank, or on none; called on rank 0 alone."""
    should_pause: Callable[[], str] | None = None
    """The same, called every `every.log` steps: why the training saves its state and ends, to be gone on with later."""
    device: torch.device = CPU
    """Device of this rank. Collectives of NCCL need their tensors there, from the first starting value on."""
    timeout_s: float = 600.0
    """Seconds that ranks wait for each other, in a collective and for parts of a checkpoint."""
    rank: int = field(default_factory=lambda: dist.get_rank())
    num_ranks: int = field(default_factory=lambda: dist.get_world_size())

    def run(self) -> TrainingResult:
        """Train from the newest valid checkpoint, if there is one, to the end, and save the dictionary.

        `should_stop` ends it sooner; `should_pause` does without the dictionary. Raises NonFiniteStepError, on every
        rank, when a step is not finite and the trial had resumed for that before.
        """
        watch = self._watch() if self.num_ranks > 1 else Alone()
        with watch.watching():
            mesh = connect(place_in(self.config, self.rank), self.device, self.timeout_s)
            assert mesh.place.size == self.num_ranks, (mesh.place, self.num_ranks)
            while True:
                try:
                    return self._run_to_end(set_up(self.config, self.store, self.open_stream, mesh, self.device), watch)
                except NonFiniteStepError as error:
                    failure = error.with_traceback(None)  # its frames hold the engine
                gc.collect()
                resume_once(self.store, failure, mesh)

    def _watch(self) -> Watch:
        """A rank that hangs has been silent for long when a collective gives up on it."""
        interval_s = min(BEAT_S, self.timeout_s / (2 * SILENT_AFTER_BEATS))
        return Watch(rank=self.rank, num_ranks=self.num_ranks, interval_s=interval_s)

    def _run_to_end(self, setup: Setup, watch: Watch | Alone) -> TrainingResult:
        """Run the loop to the end of the training, and save what it leaves."""
        observers, validate = self._observers(setup), self._evaluator(setup, setup.validation, calibrates=True)
        try:
            last, ending = self._run_loop(setup, observers, validate, watch)
            steps = last.step - setup.start if last is not None else 0
            if last is not None and ending.kind == "paused":
                observers.checkpoint.save(last.step)
                observers.writer.close()
                return TrainingResult({}, {}, observers.log.train_s, steps, [], *ending)
            # Resumed after the last step, nothing was evaluated yet.
            validation = (last.evaluation if last is not None else None) or validate()
            metrics, curve = self._tested(setup, observers, setup.start + steps, is_done=ending.kind == "done")
            observers.writer.close()  # before the dictionary is gathered: the memory of both is never needed at once
            publish(self.store.at_path("dictionary"), setup, self.config, trial=self.trial, metrics=metrics)
            if observers.metrics_log is not None:
                observers.metrics_log.flush()
        except BaseException:
            observers.writer.close(PATIENCE_S)  # the next attempt resumes from there; but ranks that hang write no part
            raise
        return TrainingResult(metrics, validation, observers.log.train_s, steps, curve, *ending)

    def _run_loop(
        self, setup: Setup, observers: Observers, validate: Evaluator, watch: Watch | Alone
    ) -> tuple[StepRecord | None, Ending]:
        """Train until the last step or an ending before it; return the last step's record, None if there was none."""
        config, mesh = self.config, setup.mesh
        last: StepRecord | None = None
        check = RowCheck(mesh, self._planned()) if config.mesh.check_rows else None
        steps = training_steps(
            config, setup.stream, setup.engine, mesh.axes.rows, start=setup.start, check=check, evaluate=validate
        )
        with closing(steps) as records:
            for last in records:
                watch.step = last.step
                run_hooks(observers.hooks, last, config.num_steps)
                for stop in observers.stops:
                    if (ending := stop(last.step)) is not None:
                        return last, ending
        return last, DONE

    def _tested(
        self, setup: Setup, observers: Observers, step: int, *, is_done: bool
    ) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Open the test rows, which nothing of the training has read, and return the metrics on them.

        A training that is done has them at other numbers of active latents, too, where the architecture offers these.
        """
        stream, traffic = open_part(self.config, "test", self.open_stream, setup.mesh), observers.log.traffic
        traffic.evaluated.append(stream)
        test = self._evaluator(setup, stream)
        metrics = test()
        curve = [{"k": float(k), **test(k)} for k in (setup.engine.dictionary.eval_ks() if is_done else ())]
        values = {f"test/{name}": value for name, value in metrics.items() if name != "rows"}
        values["data/bytes_read"] = traffic.bytes_read()
        observers.emit({"step": step, "rows": step * self.config.data.batch_rows, **values})
        return metrics, curve

    def _evaluator(self, setup: Setup, stream: BatchStream, *, calibrates: bool = False) -> Evaluator:
        return Evaluator(
            engine=setup.engine,
            stream=stream,
            data=self.config.data,
            max_rows=self.config.every.eval_rows,
            rows=setup.mesh.axes.rows,
            micro_batches=self.config.mesh.micro_batches,
            calibrates=calibrates,
        )

    def _observers(self, setup: Setup) -> Observers:
        every, mesh = self.config.every, setup.mesh
        metrics_log = MetricsLog(store=self.store) if self.rank == 0 else None
        if metrics_log is not None:
            metrics_log.resume(setup.start)
        emit: Emit = metrics_log.add if metrics_log is not None else lambda record: None
        traffic = DataTraffic(train=setup.stream, evaluated=[setup.validation], ranks=mesh.axes.pairs)
        log = LogHook(every=every.log, traffic=traffic, mesh=mesh, emit=emit, step=setup.start, on_log=self.on_log)
        evaluation = EvaluationHook(every=every.evaluate, traffic=traffic, emit=emit, on_evaluation=self.on_evaluation)
        writer = self._checkpoint_writer(setup)
        checkpoint = CheckpointHook(
            every=every.checkpoint, engine=setup.engine, share=setup.share, writer=writer, metrics_log=metrics_log
        )
        hooks: list[Hook] = [log, evaluation, checkpoint]
        if every.checkpoint_s is not None:
            after_s, ranks = every.checkpoint_s, mesh.axes.pairs
            hooks.append(TimedCheckpointHook(every=every.log, after_s=after_s, checkpoint=checkpoint, ranks=ranks))
        return Observers(hooks, log, checkpoint, writer, metrics_log, emit, self._stop_checks(setup, metrics_log))

    def _stop_checks(self, setup: Setup, metrics_log: MetricsLog | None) -> list[StopCheck]:
        """What may end the training before its last step: for good, and for now."""
        every, stop, pause = self.config.every, self.should_stop, self.should_pause
        num_steps, ranks = self.config.num_steps, setup.mesh.axes.pairs
        checks = []
        if stop is not None:
            asked = None if metrics_log is None else lambda: stop(metrics_log.records)
            checks.append(StopCheck("stopped", every.evaluate, num_steps, asked, ranks))
        if pause is not None:
            asked = None if metrics_log is None else pause
            checks.append(StopCheck("paused", every.log, num_steps, asked, ranks))
        return checks

    def _checkpoint_writer(self, setup: Setup) -> CheckpointWriter:
        return CheckpointWriter(
            store=self.store.at_path("checkpoints"),
            attempt=new_attempt(setup.mesh),
            about=describe_dictionary(setup.engine.dictionary),
            rank=self.rank,
            ranks=setup.mesh.place.size,
            keep_every=self.config.every.keep,
            timeout_s=self.timeout_s,
        )

    def _planned(self) -> BatchStream | None:
        """On rank 0 all rows of every batch, read by itself alone."""
        if self.rank != 0:
            return None
        return local_stream(self.config.data.stream_spec("train"), batch_rows=self.config.data.batch_rows)
