"""Train one dictionary on this rank's share of a mesh: build, resume, run the loop, save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.distributed as dist

from storage.errors import UserError
from storage.manifest import Manifest
from storage.store import Store
from storage.stream import BatchStream
from storage.windows import LocalWindows, StreamSpec, WindowReader, WindowSource
from training.axes import ALL_ROWS, Rows, SplitRows
from training.batches import raw_rows
from training.checkpoints import Checkpoint, CheckpointWriter, folder_of, newest_checkpoint, read_checkpoint
from training.config import TrainingConfig
from training.data_traffic import DataTraffic
from training.dictionaries import make_dictionary
from training.dictionaries.base import Dictionary, RawRows
from training.engine import Engine
from training.hooks import CheckpointHook, Emit, EvaluateHook, LogHook
from training.loop import run_hooks, training_steps
from training.metrics import METRICS_VERSION
from training.metrics_log import MetricsLog
from training.optimizer import Optimizer
from training.saved import save_dictionary, to_state_dict
from training.solver import Solver

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
    rank: int = field(default_factory=lambda: dist.get_rank())
    num_ranks: int = field(default_factory=lambda: dist.get_world_size())

    def run(self) -> TrainingResult:
        """Train to the end, from the newest valid checkpoint if there is one, and save the dictionary."""
        rows: Rows = ALL_ROWS if self.num_ranks == 1 else SplitRows(self.num_ranks)
        stream, held_out = self._stream("train"), self._stream("held_out")
        dictionary = build_dictionary(self.config, stream.manifest, rows).to(training_device())
        checkpoint = self._newest_checkpoint()
        if checkpoint is not None:
            dictionary.load_state_dict(checkpoint.weights)
        elif dictionary.needs_sample:
            dictionary.prepare(lambda: sample_rows(self.config, stream, training_device()))
        engine = make_engine(dictionary, self.config, self.num_ranks)
        if checkpoint is not None:
            engine.restore(checkpoint)
        start = checkpoint.step if checkpoint else 0
        return self._train(engine, stream, held_out, rows, start)

    def _train(
        self, engine: Optimizer, stream: BatchStream, held_out: BatchStream, rows: Rows, start: int
    ) -> TrainingResult:
        config, every = self.config, self.config.every
        writer = CheckpointWriter(store=self.store.at_path("checkpoints")) if self.rank == 0 else None
        metrics_log = MetricsLog(store=self.store) if self.rank == 0 else None
        if metrics_log is not None:
            metrics_log.resume(start)
        emit: Emit = metrics_log.add if metrics_log is not None else lambda record: None

        def emit_evaluation(record: dict[str, float]) -> None:
            emit(record)
            self.on_evaluation(record)

        traffic = DataTraffic(train=stream, held_out=held_out, rows=rows, device=engine.device)
        log = LogHook(every=every.log, traffic=traffic, emit=emit, step=start)
        evaluation = EvaluateHook(
            every=every.evaluate,
            engine=engine,
            stream=held_out,
            data=config.data,
            max_rows=every.eval_rows,
            rows=rows,
            emit=emit_evaluation,
        )
        checkpoint = CheckpointHook(every=every.checkpoint, engine=engine, writer=writer, metrics_log=metrics_log)
        try:
            for record in training_steps(config, stream, engine, rows, start=start):
                run_hooks([log, evaluation, checkpoint], record, config.num_steps)
            metrics = evaluation.last or evaluation.evaluate()  # resumed after the last step: nothing was evaluated yet
            curve = [{"k": float(k), **evaluation.evaluate(k)} for k in engine.dictionary.budgets()]
            self._save(engine, stream.manifest, metrics)
            if metrics_log is not None:
                metrics_log.flush()
        finally:
            if writer is not None:
                writer.close()  # of a failed training too: the next attempt resumes from there
        return TrainingResult(metrics, log.train_s, config.num_steps - start, curve)

    def _stream(self, part: str) -> BatchStream:
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
            rank=self.rank,
            num_ranks=self.num_ranks,
        )

    def _newest_checkpoint(self) -> Checkpoint | None:
        """Rank 0 chooses, so that all ranks resume from the same one."""
        store = self.store.at_path("checkpoints")
        newest = newest_checkpoint(store) if self.rank == 0 else None
        if self.num_ranks == 1:
            return newest
        choice = [newest.step if newest else None]
        dist.broadcast_object_list(choice)
        if choice[0] is None or self.rank == 0:
            return newest
        return read_checkpoint(store, folder_of(choice[0]))

    def _save(self, engine: Optimizer, manifest: Manifest, metrics: dict[str, float]) -> None:
        tensors = to_state_dict(engine.full_parameters(), engine.dictionary)
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
        save_dictionary(self.store.at_path("dictionary"), engine.dictionary, tensors, about)


def build_dictionary(config: TrainingConfig, manifest: Manifest, rows: Rows = ALL_ROWS) -> Dictionary:
    """The untrained dictionary."""
    return make_dictionary(config.dictionary, config.data.sites_in(manifest), seed=config.seed, rows=rows)


def training_device() -> torch.device:
    """Where this rank computes: collectives of NCCL need their tensors there, from the first starting value on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def sample_rows(config: TrainingConfig, stream: BatchStream, device: torch.device) -> Iterator[RawRows]:
    """This rank's part of the first training rows, from which starting values are computed."""
    wanted = -(-config.dictionary.sample_rows // config.data.batch_rows)
    for step in range(min(wanted, stream.steps_per_epoch)):
        yield raw_rows(stream.batch(step), config.data, device)


def make_engine(dictionary: Dictionary, config: TrainingConfig, num_ranks: int) -> Optimizer:
    """What changes the dictionary as it asks for."""
    if dictionary.learns_by == "statistics":
        return Solver(dictionary)
    return Engine(dictionary, config.optimizer, zero_stage=config.mesh.stage, num_ranks=num_ranks)


def ensure_process_group() -> None:
    """A group of one where nobody made one: DeepSpeed wants one always."""
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed refuses to start without it
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
        )
