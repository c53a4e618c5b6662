"""Every mesh and ZeRO stage trains the dictionary that one process trains, step by step."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from mesh_ranks import Outcome, Task, alone, on_processes, train
from quick_cases import FAMILIES
from training_synthetic import Dataset, small_dataset

from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.mesh.mesh import MeshCoord

pytestmark = pytest.mark.usefixtures("process_group")

STAGES = range(4)
OF_TWO, OF_FOUR = ((2, 1), (1, 2)), ((4, 1), (2, 2), (1, 4))
NAMES = list(ARCHITECTURES)
VARIANTS: list[Task] = [
    Task(name="topk", options=(("multi_topk", True), ("decoder_norm", "free"))),
    Task(name="mp", options=(("residual_threshold", 0.3), ("decoder_norm", "unit"))),
    Task(name="jumprelu", options=(("l0_loss", "step"), ("preact_weight", 0.01))),
    Task(name="archetypal", options=(("code", "batch_topk"), ("candidates", 16))),
    Task(name="transcoder", options=(("code", "jumprelu"),)),
    Task(name="batch_topk", options=(("resample_every_rows", 640), ("aux_weight", 0.0))),
    Task(name="relu", options=(("bias_init", "geometric_median"), ("normaliser", "whiten"))),
]
"""Options that cross slices in ways of their own."""


def on(task: Task, mesh: tuple[int, int], stage: int) -> Task:
    return Task(name=task.name, data=mesh[0], feature=mesh[1], zero_stage=stage, options=task.options)


def covering(meshes: tuple[tuple[int, int], ...]) -> list[Task]:
    """One architecture of each family and every variant on some mesh, every mesh and stage several times."""
    every = [*(Task(name=name) for name in FAMILIES), *VARIANTS]
    return [on(task, meshes[i % len(meshes)], (i // len(meshes)) % 4) for i, task in enumerate(every)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def assert_all_equal_one_process(tasks: list[Task], dataset: Dataset, folder: Path) -> None:
    found = on_processes(tasks, dataset, folder)
    expected: dict[Task, Outcome] = {}
    for task, outcomes in found.items():
        if alone(task) not in expected:
            expected[alone(task)] = train(alone(task).config(dataset), 0)
        for outcome in outcomes:
            assert_equal(task, outcome, expected[alone(task)])


def assert_equal(task: Task, found: Outcome, expected: Outcome) -> None:
    """Losses to 1e-5, weights, thresholds and coefficients to 1e-4, the same active latents in every step."""
    assert found.losses == pytest.approx(expected.losses, rel=1e-5), task
    assert found.l0 == pytest.approx(expected.l0, rel=1e-6), task
    # A pair at rounding distance of a threshold may differ: at most one in a thousand may, and none was ever seen to.
    differing = sum(int((a - b).abs().sum()) for a, b in zip(found.fired, expected.fired, strict=True))
    assert differing <= 1e-3 * sum(int(step.sum()) for step in expected.fired), task
    assert found.state.keys() == expected.state.keys()
    for name, tensor in expected.state.items():
        # Sums over batches are as large as the batches.
        scale = max(1.0, float(tensor.double().abs().max())) if name.startswith("sum_") else 1.0
        torch.testing.assert_close(
            found.state[name], tensor, rtol=0, atol=1e-4 * scale, msg=lambda text, name=name: f"{task} {name}: {text}"
        )
    assert torch.equal(found.state["rows_since_fired_F"], expected.state["rows_since_fired_F"]), task


def test_two_ranks_train_what_one_does(dataset: Dataset, tmp_path: Path) -> None:
    assert_all_equal_one_process(covering(OF_TWO), dataset, tmp_path)


@pytest.mark.slow
def test_four_ranks_train_what_one_does(dataset: Dataset, tmp_path: Path) -> None:
    names = ["topk", "batch_topk", "jumprelu", "mp", "relaxed_archetypal", "crosscoder", "gated", "nmf"]
    tasks = [on(Task(name=name), OF_FOUR[i % 3], 3 - i % 4) for i, name in enumerate(names)]
    assert_all_equal_one_process(tasks, dataset, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("meshes", [OF_TWO, OF_FOUR], ids=["two ranks", "four ranks"])
def test_every_architecture_on_every_mesh_trains_what_one_process_does(
    meshes: tuple[tuple[int, int], ...], stage: int, dataset: Dataset, tmp_path: Path
) -> None:
    tasks = [on(Task(name=name), mesh, stage) for name in NAMES for mesh in meshes]
    assert_all_equal_one_process(tasks, dataset, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_variants_on_four_ranks(dataset: Dataset, tmp_path: Path) -> None:
    tasks = [on(task, OF_FOUR[i % 3], i % 4) for i, task in enumerate(VARIANTS)]
    assert_all_equal_one_process(tasks, dataset, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_mesh_twice_is_the_same_bit_for_bit(dataset: Dataset, tmp_path: Path) -> None:
    tasks = [on(Task(name=name), (2, 2), i % 4) for i, name in enumerate(NAMES)]
    first, second = (on_processes(tasks, dataset, _made(tmp_path / str(run))) for run in range(2))
    for task in tasks:
        for a, b in zip(first[task], second[task], strict=True):
            assert a.losses == b.losses
            assert all(torch.equal(a.state[name], b.state[name]) for name in a.state)


@pytest.mark.slow
def test_all_ranks_of_a_mesh_end_equal(dataset: Dataset, tmp_path: Path) -> None:
    task = Task(name="batch_topk", data=2, feature=2, zero_stage=1, steps=10)
    (outcomes,) = on_processes([task], dataset, tmp_path).values()
    for other in outcomes[1:]:
        assert other.losses == outcomes[0].losses
        assert all(torch.equal(other.state[name], tensor) for name, tensor in outcomes[0].state.items())


@pytest.mark.parametrize(("data", "feature"), [(1, 1), (3, 1), (1, 4), (2, 3), (4, 2)])
def test_the_groups_of_a_mesh_part_all_ranks_and_cross_in_one(data: int, feature: int) -> None:
    places = [MeshCoord(rank=rank, data=data, feature=feature) for rank in range(data * feature)]
    for place in places:
        rows, columns = place.data_ranks(), place.feature_ranks()
        for groups in (rows, columns):
            assert sorted(itertools.chain(*groups)) == list(range(place.size))
        (mine,) = [group for group in rows if place.rank in group]
        (across,) = [group for group in columns if place.rank in group]
        assert set(mine) & set(across) == {place.rank}
        assert mine.index(place.rank) == place.data_index
        assert across.index(place.rank) == place.feature_index
        assert across == list(range(across[0], across[0] + feature)), "neighbours, which share a node"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
