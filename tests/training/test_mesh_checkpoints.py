"""A checkpoint of any mesh goes on on any other, and ends where an undisturbed training does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mesh_ranks import Run, Task, run_trainers
from training_synthetic import Dataset, sparse_features, write_features

from lexray.storage.store import Store
from lexray.training.checkpoint.format import Checkpoint, newest_checkpoint
from lexray.training.checkpoint.saved import load_dictionary

pytestmark = pytest.mark.usefixtures("process_group")

MeshAndStage = tuple[int, int, int]
MESHES: list[MeshAndStage] = [
    (1, 1, 0),
    (1, 1, 3),
    (2, 1, 1),
    (1, 2, 0),
    (1, 2, 2),
    (4, 1, 3),
    (2, 2, 1),
    (2, 2, 3),
    (1, 4, 2),
]
"""Data ranks, feature ranks, ZeRO stage."""
STEPS, SAVED_AT, STOPPED_AT = 30, 15, 20
SLOW_NAMES = ["mp", "relaxed_archetypal", "skip_transcoder", "crosscoder_batch_topk", "nmf"]
LONG_NAMES = ["relu", "jumprelu", "gated"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Of an odd width, so that not every parameter divides evenly over the ranks."""
    return write_features(tmp_path_factory.mktemp("data"), sparse_features(24, 13, active=3, rows=3200))


def task_on(name: str, mesh: MeshAndStage) -> Task:
    return Task(name=name, data=mesh[0], feature=mesh[1], zero_stage=mesh[2], steps=STEPS)


def runs_of(tasks: dict[str, Task], dataset: Dataset, work: Path, stop_at: int | None = None) -> dict[str, int]:
    """Run one training in each folder, those with the same number of ranks in the same processes."""
    done = {}
    for ranks in sorted({task.ranks for task in tasks.values()}):
        folders = [folder for folder, task in tasks.items() if task.ranks == ranks]
        meeting = work / f"ranks{ranks}-{stop_at}"
        meeting.mkdir(parents=True)
        runs = [Run(task=tasks[folder], folder=folder, stop_at=stop_at) for folder in folders]
        done |= dict(zip(folders, run_trainers(runs, dataset, meeting), strict=True))
    return done


def final(folder: str | Path) -> Checkpoint:
    found = newest_checkpoint(Store.at(f"{folder}/checkpoints"))
    assert found is not None
    assert found.step == STEPS
    return found


def assert_ends_alike(folder: str, expected: str) -> None:
    """Weights to 1e-4, counters exactly; the dictionary, too, and what was logged."""
    found, wanted = final(folder), final(expected)
    assert found.weights.keys() == wanted.weights.keys()
    for name, tensor in wanted.weights.items():
        torch.testing.assert_close(found.weights[name], tensor, rtol=1e-5, atol=1e-4)
    assert torch.equal(found.weights["rows_since_fired_F"], wanted.weights["rows_since_fired_F"])
    records = [
        {r["step"]: r for r in map(json.loads, (Path(where) / "metrics.jsonl").read_text().splitlines())}
        for where in (folder, expected)
    ]
    assert records[0].keys() == records[1].keys()
    for step, record in records[1].items():
        for name in ("train/loss", "train/l0", "eval/fvu", "eval/l0", "eval/dead_fraction"):
            if name in record:
                assert records[0][step][name] == pytest.approx(record[name], rel=1e-4, abs=1e-6), (step, name)


def check_moves(
    name: str, moves: list[tuple[tuple[int, int, int], tuple[int, int, int]]], dataset: Dataset, work: Path
):
    """Save on the first mesh of each move, go on on the second."""
    alone = str(work / "alone")
    runs_of({alone: task_on(name, (1, 1, 0))}, dataset, work / "a")
    origins = {str(work / f"from{a}"): task_on(name, a) for a, _ in moves}
    stopped = runs_of(origins, dataset, work / "b", stop_at=STOPPED_AT)
    assert set(stopped.values()) == {-1}
    targets = {}
    for a, b in moves:
        folder = str(work / f"from{a}to{b}")
        shutil.copytree(str(work / f"from{a}"), folder)
        targets[folder] = task_on(name, b)
    done = runs_of(targets, dataset, work / "c")
    assert set(done.values()) == {STEPS - SAVED_AT}
    for folder in targets:
        assert_ends_alike(folder, alone)


@pytest.mark.slow
def test_a_checkpoint_goes_on_on_another_mesh(dataset: Dataset, tmp_path: Path) -> None:
    check_moves(
        "batch_topk", [((1, 1, 0), (1, 2, 2)), ((2, 1, 1), (1, 1, 0)), ((1, 2, 0), (2, 1, 3))], dataset, tmp_path
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_checkpoint_of_each_mesh_goes_on_on_each_other(dataset: Dataset, tmp_path: Path) -> None:
    check_moves("batch_topk", [(a, b) for a in MESHES for b in MESHES], dataset, tmp_path)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_NAMES),
        *(pytest.param(name, marks=pytest.mark.long) for name in LONG_NAMES),
    ],
)
def test_other_architectures_move_too(name: str, dataset: Dataset, tmp_path: Path) -> None:
    check_moves(name, [((2, 2, 1), (1, 1, 0)), ((1, 1, 0), (2, 2, 3)), ((4, 1, 3), (1, 4, 2))], dataset, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_and_the_final_dictionary_of_a_mesh_are_plain_dictionaries(
    dataset: Dataset, tmp_path: Path
) -> None:
    folder = str(tmp_path / "out")
    runs_of({folder: task_on("relaxed_archetypal", (2, 2, 1))}, dataset, tmp_path / "work")
    saved = load_dictionary(f"{folder}/dictionary")
    (last,) = Path(folder, "checkpoints").glob(f"step-{STEPS:09d}-*")
    from_checkpoint = load_dictionary(str(last))
    x_BD = dataset.features.rows[:50]
    with torch.no_grad():
        assert torch.equal(saved.encode(x_BD).dense(), from_checkpoint.encode(x_BD).dense())
        torch.testing.assert_close(saved(x_BD), from_checkpoint(x_BD))
