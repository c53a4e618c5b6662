"""Train one dictionary on this rank's share of a mesh: build, resume, run the loop, save."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist

from lexray.storage.anonymous import without_home
from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream, local_stream
from lexray.storage.windows import LocalWindows, StreamSpec, WindowReader, WindowSource
from lexray.training.checkpoint.parts import ShardSpec
from lexray.training.checkpoint.resume import new_attempt, newest_state
from lexray.training.checkpoint.saved import describe_dictionary, save_dictionary, to_state_dict
from lexray.training.checkpoint.writer import CheckpointWriter
from lexray.training.config import TrainingConfig
from lexray.training.engines.engine import Engine
from lexray.training.loop.build import build_dictionary, make_engine, place_in, sample_rows
from lexray.training.loop.data_traffic import DataTraffic
from lexray.training.loop.hooks import (
    CheckpointHook,
    Emit,
    EvaluateHook,
    LogHook,
    LogInterval,
    StopHook,
    TimedCheckpointHook,
)
from lexray.training.loop.loop import Hook, run_hooks, training_steps
from lexray.training.loop.metrics_log import MetricsLog
from lexray.training.measures.metrics import METRICS_VERSION
from lexray.training.mesh.device import CPU
from lexray.training.mesh.liveness import BEAT_S, SILENT_AFTER_BEATS, Alone, RowCheck, Watch, exchange_identities
from lexray.training.mesh.mesh import Mesh, connect

PATIENCE_S = 20.0
"""How long a save that is under way may wait for other ranks' parts when the training has failed."""

OpenStream = Callable[[StreamSpec], WindowSource]
"""How a stream's windows are reached: this process itself, or the node's server."""


def read_locally(spec: StreamSpec) -> WindowSource:
    """Windows read by this process."""
    return LocalWindows(WindowReader(spec))


class TrainingResult(NamedTuple):
    """What a finished training says of itself."""

    metrics: dict[str, float]
    """Held-out metrics of the final dictionary."""
    train_s: float
    """Seconds spent in training steps by this attempt."""
    steps: int
    """Steps done by this attempt: fewer than all after a resume."""
    curve: list[dict[str, float]]
    """Held-out metrics at other numbers of active latents, `k`, where the architecture offers them."""
    ended: Literal["done", "stopped", "paused"] = "done"
    """`stopped` for good by a verdict, with a dictionary; `paused` with a checkpoint from which another run goes on."""
    reason: str = ""
    """Why it ended before its last step; known on rank 0."""


class Parts(NamedTuple):
    """What a training is made of when its first step begins."""

    mesh: Mesh
    stream: BatchStream
    held_out: BatchStream
    engine: Engine
    share: ShardSpec
    start: int
    """Finished steps."""


class Hooks(NamedTuple):
    """What happens now and then, and what the end of a training asks of it."""

    due: list[Hook]
    """In the order in which they are called."""
    log: LogHook
    evaluation: EvaluateHook
    checkpoint: CheckpointHook
    stop: StopHook
    pause: StopHook


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
    """Called on every rank with the record of every evaluation."""
    on_log: Callable[[LogInterval], None] = lambda interval: None
    """Called on every rank after every log."""
    verdict: Callable[[Sequence[dict[str, Any]]], str] | None = None
    """Given the records so far after an evaluation: why the training ends here for good, empty to go on. None on every
    rank, or on none; asked on rank 0 alone."""
    pause: Callable[[], str] | None = None
    """The same, asked every `every.log` steps: why the training saves its state and ends, to be gone on with later."""
    device: torch.device = CPU
    """Where this rank computes. Collectives of NCCL need their tensors there, from the first starting value on."""
    timeout_s: float = 600.0
    """How long ranks wait for each other, in a collective and for parts of a checkpoint."""
    rank: int = field(default_factory=lambda: dist.get_rank())
    num_ranks: int = field(default_factory=lambda: dist.get_world_size())

    def run(self) -> TrainingResult:
        """Train from the newest valid checkpoint, if there is one, to the end, and save the dictionary.

        A verdict ends it sooner; a pause does without the dictionary.
        """
        watch = self._watch() if self.num_ranks > 1 else Alone()
        with watch.watching():
            return self._train(self._build(), watch)

    def _watch(self) -> Watch:
        """A rank that hangs has been silent for long when a collective gives up on it."""
        interval_s = min(BEAT_S, self.timeout_s / (2 * SILENT_AFTER_BEATS))
        return Watch(rank=self.rank, num_ranks=self.num_ranks, interval_s=interval_s)

    def _build(self) -> Parts:
        mesh = connect(place_in(self.config, self.rank), self.device, self.timeout_s)
        assert mesh.place.size == self.num_ranks, (mesh.place, self.num_ranks)
        stream, held_out = self._stream("train", mesh), self._stream("held_out", mesh)
        dictionary = build_dictionary(self.config, stream.manifest, mesh.axes).to(self.device)
        share = ShardSpec(mesh.place, dictionary.split_names())
        state = newest_state(self.store.at_path("checkpoints"), share, mesh)
        start = state.step if state else 0
        row_ids = stream.batch(start).row_ids
        exchange_identities(mesh, row_ids, self.device)
        if state is not None:
            dictionary.load_state_dict(state.weights)
        elif dictionary.needs_sample:
            dictionary.prepare(lambda: sample_rows(self.config, stream, self.device))
        engine = make_engine(dictionary, self.config, mesh)
        if state is not None:
            engine.restore(state)
        return Parts(mesh, stream, held_out, engine, share, start)

    def _train(self, parts: Parts, watch: Watch | Alone) -> TrainingResult:
        config, start, engine = self.config, parts.start, parts.engine
        writer = self._checkpoint_writer(engine, parts.mesh)
        metrics_log = MetricsLog(store=self.store) if self.rank == 0 else None
        if metrics_log is not None:
            metrics_log.resume(start)
        hooks = self._hooks(parts, writer, metrics_log)
        stop, pause, evaluation = hooks.stop, hooks.pause, hooks.evaluation
        check = RowCheck(parts.mesh, self._planned()) if config.mesh.check_rows else None
        steps = training_steps(config, parts.stream, engine, parts.mesh.axes.rows, start=start, check=check)
        try:
            step = start
            with closing(steps) as records:
                for record in records:
                    watch.step = step = record.step
                    run_hooks(hooks.due, record, config.num_steps)
                    if stop.ended or pause.ended:
                        break
            if pause.ended and not stop.ended:
                hooks.checkpoint(record)
                writer.close()
                return TrainingResult({}, hooks.log.train_s, step - start, [], "paused", pause.reason)
            metrics = evaluation.last or evaluation.evaluate()  # resumed after the last step: nothing was evaluated yet
            budgets = () if stop.ended else engine.dictionary.eval_ks()
            curve = [{"k": float(k), **evaluation.evaluate(k)} for k in budgets]
            writer.close()  # before the dictionary is gathered: the memory of both is never needed at once
            self._save(engine, parts.stream.manifest, metrics)
            if metrics_log is not None:
                metrics_log.flush()
        except BaseException:
            writer.close(PATIENCE_S)  # the next attempt resumes from there; but ranks that hang write no part
            raise
        return TrainingResult(
            metrics, hooks.log.train_s, step - start, curve, "stopped" if stop.ended else "done", stop.reason
        )

    def _hooks(self, parts: Parts, writer: CheckpointWriter, metrics_log: MetricsLog | None) -> Hooks:
        config, every, mesh = self.config, self.config.every, parts.mesh
        emit: Emit = metrics_log.add if metrics_log is not None else lambda record: None

        def emit_evaluation(record: dict[str, float]) -> None:
            emit(record)
            self.on_evaluation(record)

        traffic = DataTraffic(train=parts.stream, held_out=parts.held_out, ranks=mesh.axes.pairs)
        log = LogHook(every=every.log, traffic=traffic, mesh=mesh, emit=emit, step=parts.start, on_log=self.on_log)
        evaluation = EvaluateHook(
            every=every.evaluate,
            engine=parts.engine,
            stream=parts.held_out,
            data=config.data,
            max_rows=every.eval_rows,
            rows=mesh.axes.rows,
            traffic=traffic,
            emit=emit_evaluation,
            micro_batches=config.mesh.micro_batches,
        )
        checkpoint = CheckpointHook(
            every=every.checkpoint, engine=parts.engine, share=parts.share, writer=writer, metrics_log=metrics_log
        )
        due: list[Hook] = [log, evaluation, checkpoint]
        if every.checkpoint_s is not None:
            after_s, ranks = every.checkpoint_s, mesh.axes.pairs
            due.append(TimedCheckpointHook(every=every.log, after_s=after_s, checkpoint=checkpoint, ranks=ranks))
        stop, pause = self._ends(metrics_log, mesh)
        due += [*([stop] if self.verdict is not None else []), *([pause] if self.pause is not None else [])]
        return Hooks(due, log, evaluation, checkpoint, stop, pause)

    def _ends(self, metrics_log: MetricsLog | None, mesh: Mesh) -> tuple[StopHook, StopHook]:
        """What may end the training before its last step: for good, and for now."""
        config, verdict = self.config, self.verdict

        def stop() -> str:
            assert metrics_log is not None
            assert verdict is not None
            return verdict(metrics_log.records)

        asks = (stop, self.pause) if metrics_log is not None else (None, None)
        everies = (config.every.evaluate, config.every.log)
        first, second = (
            StopHook(every=every, num_steps=config.num_steps, ask=ask, ranks=mesh.axes.pairs)
            for every, ask in zip(everies, asks, strict=True)
        )
        return first, second

    def _checkpoint_writer(self, engine: Engine, mesh: Mesh) -> CheckpointWriter:
        return CheckpointWriter(
            store=self.store.at_path("checkpoints"),
            attempt=new_attempt(mesh),
            about=describe_dictionary(engine.dictionary),
            rank=self.rank,
            ranks=mesh.place.size,
            keep_every=self.config.every.keep,
            timeout_s=self.timeout_s,
        )

    def _stream(self, part: str, mesh: Mesh) -> BatchStream:
        spec = self.config.data.stream_spec(part)  # type: ignore[arg-type]
        source = self.open_stream(spec)
        found = source.describe().manifest.id
        if found != self.config.data.dataset_id:
            raise UserError(
                f"data.url: {self.config.data.url} now holds dataset {found}, "
                f"the trial was configured for {self.config.data.dataset_id}"
            )
        return BatchStream(
            spec=spec,
            source=source,
            batch_rows=self.config.data.batch_rows,
            rank=mesh.place.data_index,
            num_ranks=mesh.place.data,
        )

    def _planned(self) -> BatchStream | None:
        """On rank 0 all rows of every batch, read by itself alone."""
        if self.rank != 0:
            return None
        return local_stream(self.config.data.stream_spec("train"), batch_rows=self.config.data.batch_rows)

    def _save(self, engine: Engine, manifest: Manifest, metrics: dict[str, float]) -> None:
        wholes = engine.dictionary.gather_full(to_state_dict(engine.full_parameters(), engine.dictionary))
        tensors = {name: whole for name, whole in wholes if self.rank == 0}  # the others only help to gather
        if self.rank != 0:
            return
        data = self.config.data
        about = {
            "trial": self.trial,
            "sites": {
                kind: [{"name": name, "source": manifest.sites[name].source} for name in names]
                for kind, names in (("inputs", data.inputs), ("outputs", data.reconstructed))
            },
            "data": {"url": data.url, "id": data.dataset_id, "provenance": manifest.provenance},
            "training": self.config.to_dict(),
            "held_out": {"metrics_version": METRICS_VERSION, **metrics},
        }
        save_dictionary(self.store.at_path("dictionary"), engine.dictionary, tensors, without_home(about))
