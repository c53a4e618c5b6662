"""The engine's options on two ranks give what one process gives without them."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from mesh_ranks import Outcome, Task, train
from torch.multiprocessing import start_processes
from training_synthetic import Dataset, small_dataset

from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.training.config import TrainingConfig
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")

RANKS, STEPS = 2, 15


class Case(NamedTuple):
    """A training with options, and how near its losses are to those of one process."""

    name: str
    mesh: MeshConfig
    optimizer: dict[str, Any] = {}  # noqa: RUF012
    rel: float = 1e-5
    options: tuple[tuple[str, Any], ...] = ()

    def config(self, dataset: Dataset) -> TrainingConfig:
        base = Task(name=self.name, steps=STEPS, options=self.options).config(dataset)
        return replace(base, mesh=self.mesh, optimizer=replace(base.optimizer, **self.optimizer))


CONSTRAINED = (("decoder_norm", "constrained"),)
CASES = [
    *(
        Case("batch_topk", MeshConfig(**axes, zero_stage=stage, micro_batches=3, offload_optimizer=stage > 0))
        for axes in ({"data": 2}, {"feature": 2})
        for stage in range(4)
    ),
    Case("topk", MeshConfig(data=2, zero_stage=2, micro_batches=4), {"lr_scale": {"b_dec": 3.0, "W_enc": 0.5}}),
    Case("jumprelu", MeshConfig(feature=2, zero_stage=1), {"lr_scale": {"scaled_log_threshold": 0.1}}),
    # Other summands in bf16 products round otherwise.
    Case("batch_topk", MeshConfig(data=2, zero_stage=1), {"precision": "bf16"}, rel=5e-3),
    Case("topk", MeshConfig(feature=2, zero_stage=3), {"precision": "bf16"}, rel=5e-3),
    Case("relu", MeshConfig(feature=2), {"precision": "bf16"}, rel=5e-3),
    # After each step the decoder is gathered, put back to length 1, and dealt out again.
    *(Case("topk", MeshConfig(data=2, zero_stage=stage), options=CONSTRAINED) for stage in range(4)),
    Case("relu", MeshConfig(feature=2, zero_stage=1), options=CONSTRAINED),
    Case("crosscoder", MeshConfig(feature=2), options=CONSTRAINED),
    Case("crosscoder_batch_topk", MeshConfig(data=2, zero_stage=3), options=CONSTRAINED),
]


QUICK = [CASES[2], CASES[5], CASES[8], CASES[10]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def on_two_processes(work: Any, *args: Any) -> None:
    """Call `work(rank, *args)` on two processes, forked from one that has imported everything."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lexray.training.loop.trainer"])
    start_processes(work, args, nprocs=RANKS, start_method="forkserver")


def join_group(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    ensure_process_group()


def train_all(rank: int, configs: list[TrainingConfig], folder: Path) -> None:
    join_group(rank, folder)
    torch.save([train(config, rank) for config in configs], folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("cases", [QUICK, pytest.param(CASES, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_two_ranks_with_options_train_what_one_does_without(
    cases: list[Case], dataset: Dataset, tmp_path: Path
) -> None:
    on_two_processes(train_all, [case.config(dataset) for case in cases], tmp_path)
    found: list[list[Outcome]] = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]
    for i, case in enumerate(cases):
        expected = train(replace(case.config(dataset), mesh=MeshConfig()), 0)
        for outcome in (outcomes[i] for outcomes in found):
            assert outcome.losses == pytest.approx(expected.losses, rel=case.rel), case
            assert outcome.l0 == pytest.approx(expected.l0, rel=0.02 if case.optimizer.get("precision") else 1e-6)
            for name, tensor in expected.state.items() if case.rel < 1e-4 else ():
                torch.testing.assert_close(outcome.state[name], tensor, rtol=0, atol=1e-4)


class Astray(Trainer):
    """Whose ranks with an odd number read on after the first batch, which all check, from a wrong place."""

    def _run_to_end(self, setup, watch):
        stream = setup.stream
        if self.rank % 2:
            stream.batches = lambda steps, ready: BatchStream.batches(stream, range(steps.start + 3, steps.stop), ready)
        return super()._run_to_end(setup, watch)


def check_all(rank: int, configs: list[TrainingConfig], folder: Path) -> None:
    """Train with every batch checked; then with a rank that goes astray, which all must notice."""
    join_group(rank, folder)
    for i, config in enumerate(configs):
        Trainer(config=config, store=Store.at(str(folder / f"good{i}")), rank=rank, num_ranks=RANKS).run()
        try:
            Astray(config=config, store=Store.at(str(folder / f"bad{i}")), rank=rank, num_ranks=RANKS).run()
        except RuntimeError as error:
            (folder / f"said-{i}-{rank}").write_text(str(error))
        dist.barrier()
    dist.destroy_process_group()


def test_a_rank_that_goes_astray_is_found_by_all_when_rows_are_checked(dataset: Dataset, tmp_path: Path) -> None:
    meshes = [MeshConfig(data=2, check_rows=True), MeshConfig(feature=2, check_rows=True)]
    on_two_processes(check_all, [Case("topk", mesh).config(dataset) for mesh in meshes], tmp_path)
    expected = ["planned rows are read by no rank", "batch 0: ranks 0 and 1 share their rows, but read other ones"]
    for i, said in enumerate(expected):
        for rank in range(RANKS):
            assert said in (tmp_path / f"said-{i}-{rank}").read_text()
        assert (tmp_path / f"good{i}" / "dictionary").exists()
