"""The order of rows: a pure function, the same for ever, that serves every row once an epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.storage.errors import UserError
from lexray.storage.order import EpochOrder, WindowKey, permutation, rank_lanes, steps_per_epoch

layouts = st.fixed_dictionaries(
    {
        "selected_rows": st.lists(st.integers(0, 20), max_size=40).map(lambda counts: np.array(counts, dtype=np.int64)),
        "seed": st.integers(0, 2**63),
        "epoch": st.integers(0, 1000),
        "lanes": st.integers(1, 9),
        "chunks_per_window": st.integers(1, 5),
    }
)


def lane_rows(order: EpochOrder, lane: int) -> list[tuple[int, int]]:
    """The lane's rows as (chunk, number among the chunk's selected rows)."""
    return [(s.chunk, row) for window in order.windows(lane) for s in window for row in range(s.start, s.stop)]


@settings(deadline=None, max_examples=100)
@given(layouts)
def test_lanes_share_the_rows_equally_and_no_row_comes_twice(layout: dict) -> None:
    order = EpochOrder(**layout)
    lanes = [lane_rows(order, lane) for lane in range(order.lanes)]
    dealt = [row for lane in lanes for row in lane]
    assert {len(lane) for lane in lanes} == {order.lane_rows}
    assert len(set(dealt)) == len(dealt)
    assert 0 <= layout["selected_rows"].sum() - len(dealt) < order.lanes
    assert all(row < layout["selected_rows"][chunk] for chunk, row in dealt)


@settings(deadline=None, max_examples=100)
@given(layouts)
def test_windows_are_runs_of_a_bounded_number_of_chunks(layout: dict) -> None:
    order = EpochOrder(**layout)
    for lane in range(order.lanes):
        windows = order.windows(lane)
        sizes = [sum(s.stop - s.start for s in window) for window in windows]
        assert all(sizes), "no window is empty"
        assert all(len(window) == order.chunks_per_window for window in windows[:-1])
        assert all(1 <= len(window) <= order.chunks_per_window for window in windows)
        assert order.window_ends(lane).tolist() == np.cumsum(sizes).astype(int).tolist()


@given(st.integers(0, 500), st.integers(0, 2**63), st.integers(0, 3), st.lists(st.integers(0, 2**40), max_size=3))
@settings(deadline=None, max_examples=100)
def test_a_permutation_holds_every_number_once(count: int, seed: int, purpose: int, counter: list[int]) -> None:
    first, again = permutation(count, seed, purpose, *counter), permutation(count, seed, purpose, *counter)
    assert first.tolist() == again.tolist()
    assert sorted(first.tolist()) == list(range(count))


def test_a_permutation_depends_on_every_argument() -> None:
    arguments = [(7, 0), (8, 0), (7, 1), (7, 0, 1), (7, 0, 0, 1), (7, 0, 0, 0, 1), (7, 0, 2)]
    orders = [permutation(50, *words).tolist() for words in arguments]
    assert len({tuple(order) for order in orders}) == len(arguments)


def test_every_number_is_as_often_in_every_place() -> None:
    places = np.array([permutation(8, seed, 0) for seed in range(4000)])
    counts = np.array([np.bincount(column, minlength=8) for column in places.T])
    chi_squared = ((counts - 500) ** 2 / 500).sum()
    assert chi_squared < 85, "49 degrees of freedom, 0.1 %"


def test_the_permutation_of_a_seed_never_changes() -> None:
    """Trained dictionaries, checkpoints and caches rely on it: other values here are another, incompatible order."""
    assert permutation(12, 0, 0).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]
    assert permutation(12, 2**63, 1, 5, 3, 1000).tolist() == [2, 11, 5, 6, 1, 3, 4, 9, 10, 8, 7, 0]
    assert permutation(100_000, 42, 0, 1)[[0, 1, 50_000, 99_999]].tolist() == [69492, 34686, 14828, 79395]


def test_the_layout_of_an_epoch_never_changes() -> None:
    order = EpochOrder(selected_rows=np.array([5, 0, 8, 3, 8, 1, 8]), seed=1, epoch=2, lanes=3, chunks_per_window=2)
    segments = [[[(s.chunk, s.start, s.stop) for s in window] for window in order.windows(lane)] for lane in range(3)]
    assert segments == [
        [[(2, 0, 8), (3, 0, 3)]],
        [[(4, 0, 8), (6, 0, 3)]],
        [[(6, 3, 8), (5, 0, 1)], [(0, 0, 5)]],
    ]
    assert order.window_permutation(WindowKey(2, 1, 0), 9).tolist() == [1, 0, 7, 6, 3, 5, 2, 8, 4]


@given(st.integers(1, 40), st.data())
@settings(deadline=None, max_examples=100)
def test_ranks_serve_all_lanes_in_order_and_as_evenly_as_they_go(lanes: int, data: st.DataObject) -> None:
    num_ranks = data.draw(st.integers(1, lanes))
    dealt = [list(rank_lanes(rank, num_ranks, lanes)) for rank in range(num_ranks)]
    assert [lane for rank in dealt for lane in rank] == list(range(lanes))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_three_ranks_of_sixteen_lanes_serve_six_five_and_five() -> None:
    assert [len(rank_lanes(rank, 3, 16)) for rank in range(3)] == [6, 5, 5]


def test_more_ranks_than_lanes_are_refused_with_both_numbers() -> None:
    with pytest.raises(UserError) as caught:
        rank_lanes(0, 5, 4)
    assert str(caught.value) == "workers: 5 data-parallel workers, but the stream has 4 lanes; raise data.lanes"


@given(st.integers(0, 5000), st.integers(1, 16), st.integers(1, 20))
@settings(deadline=None, max_examples=200)
def test_an_epoch_loses_less_than_a_batch_or_is_refused(selected_rows: int, lanes: int, share: int) -> None:
    batch_rows = lanes * share
    if batch_rows > selected_rows:
        with pytest.raises(UserError):
            steps_per_epoch(selected_rows, batch_rows, lanes)
        return
    left_out = selected_rows - steps_per_epoch(selected_rows, batch_rows, lanes) * batch_rows
    assert 0 <= left_out < batch_rows


def test_a_batch_larger_than_the_dataset_is_refused_with_both_numbers() -> None:
    with pytest.raises(UserError) as caught:
        steps_per_epoch(1503, 2048, 16)
    assert str(caught.value) == "batch_rows: 2,048 is larger than the 1,503 training rows of the dataset"


@pytest.mark.parametrize(("batch_rows", "near"), [(100, 96), (110, 112)])
def test_a_batch_that_lanes_do_not_divide_is_refused_with_the_nearest_that_they_do(batch_rows: int, near: int) -> None:
    with pytest.raises(UserError) as caught:
        steps_per_epoch(10_000, batch_rows, 16)
    assert str(caught.value) == f"data.batch_rows: {batch_rows} is not a multiple of data.lanes 16; use {near}"


def test_a_batch_of_fewer_rows_than_lanes_is_refused_with_both() -> None:
    with pytest.raises(UserError, match=r"3 rows cannot come from data\.lanes 16 in equal shares; use 16 or more"):
        steps_per_epoch(10_000, 3, 16)
