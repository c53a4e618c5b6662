"""Processes that train dictionaries on a mesh, and what each of them saw; for tests that compare meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from training_synthetic import BATCH_ROWS, Dataset, small_config

from lexray.storage.store import Store
from lexray.storage.stream import BatchStream, local_stream
from lexray.training.checkpoint.saved import to_state_dict
from lexray.training.config import EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries.base import Dictionary
from lexray.training.loop.build import build_dictionary, make_engine, place_in, sample_rows
from lexray.training.loop.loop import training_steps
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.mesh import Mesh, connect
from lexray.training.mesh.settings import MeshConfig

CPU = torch.device("cpu")
WIDTH, TARGET_L0 = 40, 4
OPTIONS: dict[str, dict[str, Any]] = {"group_max": {"width": WIDTH}, "pca": {}}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A training on a mesh."""

    name: str
    """Architecture."""
    data: int = 1
    feature: int = 1
    zero_stage: int = 0
    steps: int = 30
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def ranks(self) -> int:
        return self.data * self.feature

    def __str__(self) -> str:
        options = "".join(f"-{name}{value}" for name, value in self.options)
        return f"{self.name}{options}-{self.data}x{self.feature}-zero{self.zero_stage}"

    def config(self, dataset: Dataset) -> TrainingConfig:
        """Its configuration: Adam's epsilon is large, so that gradients of rounding size make no full steps."""
        options = {"width": WIDTH, "target_l0": TARGET_L0, **OPTIONS.get(self.name, {}), **dict(self.options)}
        if self.name in ("pca", "kmeans"):
            options = dict(self.options)
        return small_config(
            dataset,
            self.name,
            dictionary=options,
            optimizer=OptimizerConfig(lr=3e-3, eps=1e-4),
            mesh=MeshConfig(data=self.data, feature=self.feature, zero_stage=self.zero_stage),
            rows=self.steps * BATCH_ROWS,
        )


class Outcome(NamedTuple):
    """What a training came to on one rank."""

    losses: list[float]
    l0: list[float]
    state: dict[str, Tensor]
    """Whole parameters and buffers by name."""
    fired: list[Tensor]
    """Whole number of rows in which each latent was active, step by step."""
    traffic_bytes: int


def train(config: TrainingConfig, rank: int) -> Outcome:
    """This rank's part of a training; the process group exists."""
    mesh = connect(place_in(config, rank), CPU)
    stream = stream_of(config, mesh)
    dictionary = prepared(config, stream, mesh)
    engine = make_engine(dictionary, config, mesh)
    losses, l0, fired = [], [], []
    for record in training_steps(config, stream, engine, mesh.axes.rows, start=0):
        losses.append(record.batch.sums["loss"])
        l0.append(record.batch.sums["active"] / record.batch.rows)
        fired.append(dictionary.latents.gather(record.batch.fired_F))
    state = dict(dictionary.gather_full(to_state_dict(engine.full_parameters(), dictionary)))
    return Outcome(losses, l0, state, fired, mesh.traffic.bytes)


def stream_of(config: TrainingConfig, mesh: Mesh) -> BatchStream:
    place = mesh.place
    spec = config.data.stream_spec("train")
    return local_stream(spec, batch_rows=config.data.batch_rows, rank=place.data_index, num_ranks=place.data)


def prepared(config: TrainingConfig, stream: BatchStream, mesh: Mesh) -> Dictionary:
    """An untrained dictionary with its starting values."""
    dictionary = build_dictionary(config, stream.manifest, mesh.axes)
    if dictionary.needs_sample:
        dictionary.prepare(lambda: sample_rows(config, stream, CPU))
    return dictionary


def on_processes(tasks: Sequence[Task], dataset: Dataset, folder: Path) -> dict[Task, list[Outcome]]:
    """The outcomes on each rank of trainings that have the same number of ranks."""
    (ranks,) = {task.ranks for task in tasks}
    torch.multiprocessing.spawn(_work, args=(ranks, list(tasks), dataset, str(folder)), nprocs=ranks)
    parts = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]
    return {task: [part[i] for part in parts] for i, task in enumerate(tasks)}


class StoppedError(Exception):
    """Stands for anything that ends a training on all ranks at once."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A whole training through the Trainer, in a folder of its own."""

    task: Task
    folder: str
    stop_at: int | None = None
    """The evaluation (a step) at which it ends as if killed; None trains to the end."""


def run_trainers(runs: Sequence[Run], dataset: Dataset, folder: Path) -> list[int]:
    """Do the runs, all of one number of ranks, one after another; steps that each did, -1 for a stopped one."""
    (ranks,) = {run.task.ranks for run in runs}
    if ranks == 1:
        return [_run(run, dataset, 0) for run in runs]
    torch.multiprocessing.spawn(_trainers, args=(ranks, list(runs), dataset, str(folder)), nprocs=ranks)
    done: list[int] = torch.load(folder / "0.pt")
    return done


def _trainers(rank: int, ranks: int, runs: list[Run], dataset: Dataset, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    done = [_run(run, dataset, rank) for run in runs]
    if rank == 0:
        torch.save(done, f"{folder}/0.pt")
    dist.barrier()
    dist.destroy_process_group()


def _run(run: Run, dataset: Dataset, rank: int) -> int:
    def on_evaluation(record: dict[str, float]) -> None:
        if record["step"] == run.stop_at:
            raise StoppedError

    config = run.task.config(dataset)
    config = replace(config, every=EveryConfig(log=5, evaluate=10, checkpoint=15, eval_rows=128))
    made = Trainer(
        config=config, store=Store.at(run.folder), on_evaluation=on_evaluation, rank=rank, num_ranks=run.task.ranks
    )
    try:
        return made.run().steps
    except StoppedError:
        return -1


def _work(rank: int, ranks: int, tasks: list[Task], dataset: Dataset, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    outcomes = [train(task.config(dataset), rank) for task in tasks]
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def alone(task: Task) -> Task:
    """The same training in one process."""
    return replace(task, data=1, feature=1, zero_stage=0)
