"""A rank that dies at any moment of a save costs the steps since the save before, and nothing else.

Ranks are forked from a process that has imported everything: many groups of them are started.
"""

from __future__ import annotations

import multiprocessing
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from mesh_ranks import Task
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException, start_processes
from training_synthetic import Dataset, small_dataset

from storage.store import Store
from training.checkpoints import Checkpoint, newest_checkpoint
from training.config import EveryConfig, TrainingConfig
from training.start import ensure_process_group
from training.trainer import Trainer

STEPS, EVERY, DEATH_STEP = 20, 5, 10
TWO_RANKS = ((2, 1), (1, 2))
DIED = 17
"""Exit code of the rank that is killed."""

File = Literal["part-0000{rank}.safetensors", "part-0000{rank}.json", "manifest.json"]
Moment = Literal["before", "amid", "after"]


@dataclass(frozen=True)
class Death:
    """When a rank dies: about the writing of a file of the checkpoint of step `DEATH_STEP`."""

    rank: int
    file: File
    moment: Moment

    def __str__(self) -> str:
        return f"rank{self.rank}-{self.moment}-{self.file.format(rank=self.rank)}"


PART: File = "part-0000{rank}.safetensors"
FACTS: File = "part-0000{rank}.json"
OF_A_PART = [(PART, "before"), (PART, "amid"), (FACTS, "before"), (FACTS, "amid"), (FACTS, "after")]
OF_A_MANIFEST = [("manifest.json", "amid"), ("manifest.json", "after")]
DEATHS = [
    *(Death(rank, file, moment) for rank in range(2) for file, moment in OF_A_PART),
    *(Death(0, file, moment) for file, moment in OF_A_MANIFEST),
]
"""Before the manifest is after the last part's facts."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def config_on(mesh: tuple[int, int], dataset: Dataset) -> TrainingConfig:
    config = Task(name="batch_topk", data=mesh[0], feature=mesh[1], zero_stage=1, steps=STEPS).config(dataset)
    return replace(config, every=EveryConfig(log=5, evaluate=10, checkpoint=EVERY, eval_rows=128))


def train_in(folders: list[str], config: TrainingConfig, meeting: Path, death: Death | None = None) -> None:
    """Train in each folder, one after another, on the ranks of a group of their own."""
    meeting.mkdir(parents=True)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["training.trainer"])
    ranks = config.mesh.data * config.mesh.feature
    start_processes(work, (ranks, folders, config, str(meeting), death), nprocs=ranks, start_method="forkserver")


def work(rank: int, ranks: int, folders: list[str], config: TrainingConfig, meeting: str, death: Death | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}/file", rank=rank, world_size=ranks)
    ensure_process_group()
    if death is not None and death.rank == rank:
        die_at(death)
    for folder in folders:
        Trainer(config=config, store=Store.at(folder), rank=rank, num_ranks=ranks).run()
    dist.barrier()
    dist.destroy_process_group()


def die_at(death: Death) -> None:
    """Let this process end, without a word, when it comes to write the file; half of it is left if it dies amid."""
    write, name = Store.write, death.file.format(rank=death.rank)

    def dying(store: Store, path: str, data: bytes) -> None:
        if f"step-{DEATH_STEP:09d}-" not in path or not path.endswith(name):
            write(store, path, data)
            return
        if death.moment != "before":
            write(store, path, data if death.moment == "after" else data[: len(data) // 2])
        os._exit(DIED)

    Store.write = dying  # type: ignore[method-assign]


def final(folder: str) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """The last checkpoint and the dictionary that a finished training leaves."""
    found = newest_checkpoint(Store.at(f"{folder}/checkpoints"))
    assert found is not None
    assert found.step == STEPS
    return found, load_file(f"{folder}/dictionary/dictionary.safetensors")


def check_deaths(deaths: list[Death], mesh: tuple[int, int], dataset: Dataset, work: Path) -> None:
    config = config_on(mesh, dataset)
    undisturbed = str(work / "undisturbed")
    folders = [str(work / str(death)) for death in deaths]
    for folder, death in zip(folders, deaths, strict=True):
        with pytest.raises(ProcessExitedException) as error:
            train_in([folder], config, work / f"dies-{death}", death)
        assert (error.value.error_index, error.value.exit_code) == (death.rank, DIED)
        found = newest_checkpoint(Store.at(f"{folder}/checkpoints"))
        assert found is not None
        assert found.step == (DEATH_STEP if death in WHOLE else DEATH_STEP - EVERY), death
    train_in([undisturbed, *folders], config, work / "to-the-end")
    checkpoint, dictionary = final(undisturbed)
    for folder in folders:
        found, found_dictionary = final(folder)
        for mine, theirs in (
            (found.weights, checkpoint.weights),
            (found.moments, checkpoint.moments),
            (found_dictionary, dictionary),
        ):
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name], tensor) for name, tensor in theirs.items()), folder


WHOLE = [Death(0, "manifest.json", "after")]
"""Deaths after which the checkpoint is there."""


@pytest.mark.parametrize(("mesh", "deaths"), [
    ((2, 1), [Death(1, PART, "amid")]),
    ((1, 2), [Death(0, "manifest.json", "amid")]),
], ids=str)  # fmt: skip
def test_a_rank_killed_amid_a_save_changes_nothing(
    mesh: tuple[int, int], deaths: list[Death], dataset: Dataset, tmp_path: Path
) -> None:
    check_deaths(deaths, mesh, dataset, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mesh", TWO_RANKS, ids=str)
def test_each_rank_killed_at_each_moment_of_a_save_changes_nothing(
    mesh: tuple[int, int], dataset: Dataset, tmp_path: Path
) -> None:
    check_deaths(DEATHS, mesh, dataset, tmp_path)
