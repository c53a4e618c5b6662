"""A rank that dies amid a save costs the steps since the save before, and nothing else; one that hangs is named.

Ranks are forked from a process that has imported everything: many groups of them are started.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from mesh_ranks import Task
from safetensors.torch import load_file
from torch.multiprocessing import ProcessExitedException, start_processes
from training_synthetic import Dataset, small_dataset

from lexray.storage.store import Store
from lexray.training.checkpoint.format import Checkpoint, newest_checkpoint
from lexray.training.config import EveryConfig, TrainingConfig
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.liveness import RankSilentError
from lexray.training.mesh.settings import MeshConfig

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
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lexray.training.loop.trainer"])
    ranks = config.mesh.data * config.mesh.feature
    start_processes(work, (ranks, folders, config, str(meeting), death), nprocs=ranks, start_method="forkserver")


def work(rank: int, ranks: int, folders: list[str], config: TrainingConfig, meeting: str, death: Death | None) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}/file", rank=rank, world_size=ranks)
    ensure_process_group()
    if death is not None and death.rank == rank:
        die_at(death)
    for folder in folders:
        reported: list[float] = []
        Trainer(
            config=config,
            store=Store.at(folder),
            on_evaluation=lambda record, reported=reported: reported.append(record["step"]),
            rank=rank,
            num_ranks=ranks,
        ).run()
        Path(f"{folder}-reported-{rank}").write_text(str(reported))
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
        assert found.step in saved_at(death), death
    train_in([undisturbed, *folders], config, work / "to-the-end")
    for folder in [undisturbed, *folders]:
        reports = {Path(f"{folder}-reported-{rank}").read_text() for rank in range(2)}
        assert len(reports) == 1, "a rank that reported less often would be waited for forever"
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


def saved_at(death: Death) -> set[int]:
    """Steps of the newest checkpoint that may be left."""
    if death == Death(0, "manifest.json", "after"):
        return {DEATH_STEP}
    all_written = death == Death(1, FACTS, "after")  # rank 0 may live long enough to make them a checkpoint
    return {DEATH_STEP - EVERY} | ({DEATH_STEP} if all_written else set())


@pytest.mark.parametrize(("mesh", "deaths"), [
    ((2, 1), [Death(1, PART, "amid")]),
    pytest.param((1, 2), [Death(0, "manifest.json", "amid")], marks=pytest.mark.slow),
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


# Ranks that hang --------------------------------------------------------------------------------------------------

TIMEOUT_S = 5.0
FREEZING = [MeshConfig(data=2, zero_stage=stage) for stage in range(4)] + [MeshConfig(feature=2, zero_stage=1)]


def hang(rank: int, config: TrainingConfig, folder: str) -> None:
    """Train; rank 1 is stopped on the way, rank 0 writes down why it ended."""
    torch.set_num_threads(1)
    timeout = timedelta(seconds=TIMEOUT_S)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timeout)
    ensure_process_group()

    def freeze(record: dict[str, float]) -> None:
        if rank == 1:
            Path(folder, "frozen").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)

    trainer = Trainer(
        config=config, store=Store.at(folder), on_evaluation=freeze, timeout_s=TIMEOUT_S, rank=rank, num_ranks=2
    )
    try:
        trainer.run()
    except RankSilentError as error:
        Path(folder, "said").write_text(str(error))
    os._exit(0)  # its peer is in no state to say goodbye to


@pytest.mark.slow
@pytest.mark.parametrize("mesh", FREEZING, ids=lambda mesh: f"{mesh.data}x{mesh.feature}-zero{mesh.stage}")
def test_a_frozen_rank_is_named_when_the_timeout_has_passed(mesh: MeshConfig, dataset: Dataset, tmp_path: Path) -> None:
    """In whichever group the others wait for it: those of the axes, and those that DeepSpeed makes."""
    config = replace(config_on((mesh.data, mesh.feature), dataset), mesh=mesh)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lexray.training.loop.trainer"])
    ranks = start_processes(hang, (config, str(tmp_path)), nprocs=2, join=False, start_method="forkserver")
    deadline, said = time.monotonic() + 120, tmp_path / "said"
    try:
        while time.monotonic() < deadline and not said.exists():
            time.sleep(0.1)
        assert said.exists(), "the rank that waits never gave up"
        assert re.fullmatch(r"rank 1 on \S+ has been silent for \d+ s, since step \d+", said.read_text())
    finally:
        for process in ranks.processes:
            process.kill()
            process.join()
