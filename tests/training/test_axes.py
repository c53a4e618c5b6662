"""A split axis answers what the whole one would."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lexray.training.mesh.axes import LOCAL_DATA, LOCAL_FEATURE, LOCAL_WORLD
from lexray.training.mesh.communicator import ProcessGroup
from lexray.training.mesh.split_axes import SplitDataAxis, SplitWorldAxis

RANKS = 2


def values_of(rank: int) -> list[Tensor]:
    """One rank's values of every sum that is tried."""
    generator = torch.Generator().manual_seed(100 + rank)
    return [
        torch.randn(7, generator=generator),
        torch.randn(3, 5, generator=generator, dtype=torch.float64),
        torch.tensor(float(rank) + 0.1),
        torch.tensor(41 + rank),
        torch.randint(0, 2**40, (4, 2), generator=generator),
    ]


def searches_of(rank: int) -> list[tuple[Tensor, int]]:
    """One rank's values, none below zero, of every search for the k-th largest, and the k."""
    shared = torch.Generator().manual_seed(5)
    searches = []
    for number in range(150):
        lengths = torch.randint(0, 40, (RANKS,), generator=shared).tolist()
        total = max(1, sum(lengths))
        k = int(torch.randint(1, total + 1, (1,), generator=shared))
        generator = torch.Generator().manual_seed(1000 * rank + number)
        values = torch.rand(lengths[rank], generator=generator)
        if number % 3 == 0:
            values = (values * 4).round()  # ties, and zeros among the values
        searches.append((values, k))
    alone = torch.arange(1.0, 9.0) if rank == 0 else torch.zeros(0)
    few = torch.tensor([3.0, 2.0]) + rank
    return [*searches, (alone, 3), (alone, 8), (alone, 9), (few, 4), (few, 5), (few, 100), (torch.zeros(0), 1)]


def answer(rank: int, folder: str) -> None:
    """What one rank's axis says, saved for the test's process."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    everyone = ProcessGroup(rank, RANKS)
    rows, pairs = SplitDataAxis(everyone), SplitWorldAxis(everyone)
    given_values = values_of(rank)
    sums = [rows.all_reduce(values) for values in given_values]
    untouched = all(torch.equal(a, b) for a, b in zip(given_values, values_of(rank), strict=True))
    found = [pairs.kth_largest(values, k) for values, k in searches_of(rank)]
    torch.save({"sums": sums, "found": found, "untouched": untouched}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[dict]:
    """What each of two processes was answered."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(answer, args=(str(folder),), nprocs=RANKS)
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_sum_over_processes_is_the_sum_of_their_values(answers, rank):
    everyones = zip(*(values_of(other) for other in range(RANKS)), strict=True)
    for total, values in zip(answers[rank]["sums"], everyones, strict=True):
        expected = LOCAL_DATA.all_reduce(torch.stack(values).sum(0))
        assert torch.equal(total, expected)
        assert total.dtype == expected.dtype


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_sum_over_processes_leaves_its_argument_alone(answers, rank):
    assert answers[rank]["untouched"]


@pytest.mark.parametrize("rank", range(RANKS))
def test_the_kth_largest_over_processes_is_that_of_all_values_together(answers, rank):
    everyones = list(zip(*(searches_of(other) for other in range(RANKS)), strict=True))
    assert len(everyones) == len(answers[rank]["found"])
    for found, parts in zip(answers[rank]["found"], everyones, strict=True):
        together, k = torch.cat([values for values, _ in parts]), parts[0][1]
        assert torch.equal(found, LOCAL_WORLD.kth_largest(together, k))


@pytest.mark.parametrize("rank", range(RANKS))
def test_the_kth_largest_of_fewer_than_k_values_is_zero_over_processes(answers, rank):
    expected = [6.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0]  # the named searches at the end of `searches_of`
    assert [float(found) for found in answers[rank]["found"][-7:]] == expected


@given(st.lists(st.floats(0, 100, width=32), max_size=30), st.integers(1, 40))
def test_the_kth_largest_in_one_process_is_the_kth_of_the_sorted_values(values, k):
    expected = sorted(values, reverse=True)[k - 1] if k <= len(values) else 0.0
    assert float(LOCAL_WORLD.kth_largest(torch.tensor(values), k)) == expected


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 2**31), st.data())
def test_one_process_chooses_the_k_largest_of_every_row(num_rows, width, seed, data):
    k = data.draw(st.integers(1, width))
    scores_BF = torch.randn(num_rows, width, generator=torch.Generator().manual_seed(seed))
    chosen = LOCAL_FEATURE.topk(scores_BF, k)
    assert chosen.offsets.tolist() == [row * k for row in range(num_rows + 1)]
    ranked = scores_BF.argsort(dim=1, descending=True)
    for row in range(num_rows):
        assert set(chosen.latents[row * k : (row + 1) * k].tolist()) == set(ranked[row, :k].tolist())


def test_one_process_owns_every_latent():
    assert list(range(10))[LOCAL_FEATURE.slice_of(10)] == list(range(10))
