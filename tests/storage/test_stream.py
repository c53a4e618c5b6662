"""Batches: which rows they hold depends on the step alone, and the rows are the rows that were written."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import Written, write_rows

from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.order import WindowKey
from lexray.storage.selection import Selection
from lexray.storage.stream import Batch, BatchStream, local_stream
from lexray.storage.windows import LocalWindows, StreamSpec, WindowReader

EVERYTHING = Selection(part="all", drop_special=False)
CHUNK_ROWS = 8
WINDOW_BYTES = 3 * CHUNK_ROWS * 8
"""Three chunks of 4-wide bfloat16 rows."""

SHAPES: dict[str, dict[str, Any]] = {
    "seven unequal shards": {"rows": [131, 97, 61, 151, 89, 113, 71]},
    "a last chunk of one row": {"rows": 10 * CHUNK_ROWS + 1},
    "one shard": {"rows": 200},
    "shards smaller than the share of a lane": {"rows": [100, 3, 1, 5, 90, 2]},
    "chunks of one row": {"rows": [83, 40], "chunk_rows": 1},
    "one chunk": {"rows": 37, "chunk_rows": 64},
    "chunks filtered away": {"rows": [90, 120], "special": (np.arange(210) // 24) % 3 == 0},
}


@dataclass(kw_only=True)
class Case:
    """A dataset and how it is streamed."""

    written: Written
    batch_rows: int
    spec: StreamSpec
    selected: np.ndarray = field(init=False)
    """Numbers of the rows that the stream may serve."""

    def __post_init__(self) -> None:
        special = np.isin(self.written.columns["token_id"], self.written.manifest.special_token_ids)
        self.selected = np.flatnonzero(~special | (not self.spec.selection.drop_special))

    def stream(self, rank: int = 0, num_ranks: int = 1) -> BatchStream:
        return local_stream(self.spec, batch_rows=self.batch_rows, rank=rank, num_ranks=num_ranks)


def case_of(written: Written, *, batch_rows: int = 12, **changes: Any) -> Case:
    selection = Selection(part="all")
    settings: dict[str, Any] = {"selection": selection, "seed": 3, "lanes": 4, "window_bytes": WINDOW_BYTES}
    sites = tuple(written.manifest.sites)
    return Case(
        written=written,
        batch_rows=batch_rows,
        spec=StreamSpec(store=written.store, sites=sites, **(settings | changes)),
    )


@pytest.fixture(params=SHAPES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    shape = {"chunk_rows": CHUNK_ROWS} | SHAPES[request.param]
    return case_of(write_rows(tmp_path, **shape))


def epoch_of(stream: BatchStream, epoch: int = 0) -> list[Batch]:
    steps = stream.steps_per_epoch
    return [stream.batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]


def ids_of(batches: Iterable[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.row_ids]


def assert_as_written(batch: Batch, written: Written) -> None:
    """The vectors of each row id are those that were given to the writer, rounded to the stored dtype."""
    for site, vectors in written.vectors.items():
        assert batch.vectors[site].dtype == vectors.dtype
        assert torch.equal(batch.vectors[site], vectors[torch.from_numpy(batch.row_ids)])


def assert_all_properties(case: Case, num_ranks: int, far_step: int) -> None:
    """Once per epoch, the same for any number of ranks, the same from any step, with the values written."""
    whole = case.stream()
    parts = [case.stream(rank, num_ranks) for rank in range(num_ranks)]
    steps = whole.steps_per_epoch
    assert whole.total_rows == len(case.selected)
    assert 0 <= whole.total_rows - steps * case.batch_rows < case.batch_rows
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            batch, shares = whole.batch(step), [part.batch(step) for part in parts]
            assert batch.total_rows == len(batch.row_ids) == case.batch_rows
            assert ids_of(shares) == ids_of([batch])
            assert {share.total_rows for share in shares} == {case.batch_rows}
            assert_as_written(batch, case.written)
            assert step != far_step or ids_of([case.stream().batch(step)]) == ids_of([batch])
            seen += ids_of([batch])
        assert len(set(seen)) == len(seen) == steps * case.batch_rows
        assert set(seen) <= set(case.selected.tolist())


@st.composite
def shaped(draw: st.DrawFn) -> dict[str, Any]:
    rows = draw(st.lists(st.integers(1, 70), min_size=1, max_size=7))
    special = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=sum(rows), max_size=sum(rows))))
    lanes = draw(st.integers(1, 6))
    selected = sum(rows) - (sum(special) if special else 0)
    return {
        "rows": rows,
        "chunk_rows": draw(st.integers(1, 20)),
        "special": None if special is None else np.array(special),
        "lanes": lanes,
        "batch_rows": lanes * draw(st.integers(1, max(1, selected // lanes // 2))),
        "fits": selected >= lanes,
        "window_bytes": draw(st.integers(1, 800)),
        "seed": draw(st.integers(0, 2**63)),
        "num_ranks": draw(st.integers(1, lanes)),
        "far_step": draw(st.integers(0, 30)),
    }


@settings(deadline=None, max_examples=25)
@given(shaped().filter(lambda drawn: drawn["fits"]))
def test_any_dataset_is_served_once_and_equally_to_any_number_of_ranks(drawn: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        written = write_rows(folder, **{name: drawn[name] for name in ("rows", "chunk_rows", "special")})
        streamed = {name: drawn[name] for name in ("lanes", "batch_rows", "window_bytes", "seed")}
        assert_all_properties(case_of(written, **streamed), drawn["num_ranks"], drawn["far_step"])


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_every_row_comes_once_an_epoch_whatever_the_number_of_ranks(case: Case, num_ranks: int) -> None:
    assert_all_properties(case, num_ranks, far_step=0)


def test_a_batch_is_a_function_of_its_step(case: Case) -> None:
    iterated = case.stream()
    steps = iterated.steps_per_epoch
    expected = {step: ids_of([iterated.batch(step)]) for step in range(3 * steps)}
    for step in {0, 1, steps - 1, steps, steps + 1, 2 * steps - 1, 3 * steps - 1}:
        assert ids_of([case.stream().batch(step)]) == expected[step], "a fresh stream"
    backwards = case.stream()
    assert {step: ids_of([backwards.batch(step)]) for step in reversed(expected)} == expected


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 200)
    orders = [ids_of(epoch_of(case_of(written, seed=seed).stream(), epoch)) for seed in (0, 1) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 6
    for order in orders:
        assert sum(a == b for a, b in zip(order, orders[0], strict=True)) < 10 or order == orders[0]


def test_the_order_does_not_depend_on_dtype_place_or_values(tmp_path: Path) -> None:
    written = write_rows(tmp_path / "a", 200, dtype="bfloat16")
    other = write_rows(tmp_path / "b", 200, dtype="float16", seed=5)
    assert ids_of(epoch_of(case_of(written).stream())) == ids_of(epoch_of(case_of(other).stream()))


def test_the_rows_of_a_batch_never_change(tmp_path: Path) -> None:
    """A checkpoint resumes by its step alone: other rows here are another, incompatible order."""
    case = case_of(write_rows(tmp_path, [131, 97, 61], chunk_rows=8))
    assert case.stream().batch(0).row_ids.tolist() == [105, 55, 104, 71, 154, 64, 249, 246, 234, 26, 161, 158]
    assert case.stream().batch(100).row_ids.tolist() == [280, 149, 2, 220, 222, 261, 201, 202, 80, 46, 131, 61]


def test_where_a_row_is_stored_says_nothing_about_when_it_comes(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [20_000, 30_011], sites={"x": 2}, chunk_rows=16)
    case = case_of(written, batch_rows=512, lanes=16, window_bytes=64 * 32)
    order = np.array(ids_of(epoch_of(case.stream())))
    place = np.arange(len(order))
    assert abs(rank_correlation(order, place)) < 0.05
    assert abs(rank_correlation(order, place % 512)) < 0.05, "nor about its place in the batch"
    assert abs(rank_correlation(order[1:], order[:-1])) < 0.05, "nor do neighbours stay together"


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's; ties in order of appearance."""
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_sites_of_a_row_stay_together_in_every_dtype(dtype: str, tmp_path: Path) -> None:
    written = write_rows(tmp_path, [70, 45], sites={"early": 3, "late": 5}, dtype=dtype)
    for batch in epoch_of(case_of(written).stream()):
        assert set(batch.vectors) == {"early", "late"}
        assert_as_written(batch, written)


def test_a_stream_reads_only_its_own_sites(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 100, sites={"early": 3, "late": 5})
    spec = StreamSpec(store=written.store, sites=("late",), selection=EVERYTHING, lanes=4)
    assert set(local_stream(spec, batch_rows=8).batch(0).vectors) == {"late"}


@pytest.mark.parametrize("window_bytes", [1, 64, 200, 1000, 10**6])
def test_windows_keep_within_their_bytes_or_hold_a_single_chunk(window_bytes: int, tmp_path: Path) -> None:
    written = write_rows(tmp_path, [131, 97, 61], chunk_rows=CHUNK_ROWS)
    reader = WindowReader(case_of(written, window_bytes=window_bytes).spec)
    chunk_bytes = CHUNK_ROWS * 4 * 2
    for lane in range(4):
        rows = 0
        for index in range(len(reader.order(0).windows(lane))):
            window = reader.read(WindowKey(0, lane, index))
            assert window.vectors["x"].nbytes <= max(window_bytes, chunk_bytes)
            rows += len(window.row_ids)
        assert rows == reader.order(0).lane_rows == 289 // 4


@dataclass(frozen=True)
class CountedWindows(LocalWindows):
    """Windows read by this process, and which were asked for."""

    requested: list[WindowKey] = field(default_factory=list)

    def request(self, key: WindowKey, *, wanted_from: WindowKey | None = None) -> Any:
        self.requested.append(key)
        return super().request(key, wanted_from=wanted_from)


def counted_stream(case: Case) -> tuple[BatchStream, list[WindowKey]]:
    reader = WindowReader(case.spec)
    source = CountedWindows(reader)
    stream = BatchStream(spec=case.spec, source=source, batch_rows=case.batch_rows)
    return stream, source.requested


def test_a_window_is_asked_for_once_and_only_when_rows_of_it_are_served(case: Case) -> None:
    stream, requested = counted_stream(case)
    share, steps = case.batch_rows // case.spec.lanes, stream.steps_per_epoch
    epoch_of(stream, 0), epoch_of(stream, 1)
    order = WindowReader(case.spec).order
    served = [
        WindowKey(epoch, lane, index)
        for epoch in range(2)
        for lane in range(case.spec.lanes)
        for index, start in enumerate([0, *order(epoch).window_ends(lane)[:-1]])
        if start < share * steps
    ]
    ahead = [WindowKey(2, lane, 0) for lane in range(case.spec.lanes)]
    assert sorted(requested) == sorted(served + ahead)


def test_a_stream_holds_the_windows_in_use_and_the_next_of_each_lane_and_no_more(tmp_path: Path) -> None:
    case = case_of(write_rows(tmp_path, [131, 97, 61, 151]))
    stream, _ = counted_stream(case)
    steps = stream.steps_per_epoch
    for step in [0, 7, 3, steps - 1, steps, 5 * steps, 2, *range(3 * steps)]:
        stream.batch(step)
        assert len(stream._held) <= 2 * case.spec.lanes, "a batch takes less than a window of each lane"
        assert len(stream._requested) <= case.spec.lanes


def test_waiting_for_windows_is_measured(tmp_path: Path) -> None:
    stream = case_of(write_rows(tmp_path, 100)).stream()
    assert stream.stats.wait_s == 0
    stream.batch(0)
    assert stream.stats.wait_s > 0


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_evaluation_sees_every_row_once(case: Case, num_ranks: int) -> None:
    streams = [case.stream(rank, num_ranks) for rank in range(num_ranks)]
    batches = [list(stream.every_row()) for stream in streams]
    ids = [row for rank in batches for row in ids_of(rank)]
    assert len(set(ids)) == len(ids)
    assert set(ids) <= set(case.selected.tolist())
    assert 0 <= len(case.selected) - len(ids) < case.spec.lanes
    assert sum(batch.total_rows for batch in batches[0]) == len(ids)
    assert sorted(ids) == sorted(ids_of(case.stream().every_row()))
    for rank in batches:
        for batch in rank:
            assert_as_written(batch, case.written)


@pytest.mark.parametrize(("max_rows", "rows"), [(0, 0), (1, 4), (4, 4), (50, 52), (200, 200), (203, 200), (9999, 200)])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_max_rows_bounds_an_evaluation_to_the_next_multiple_of_lanes(
    max_rows: int, rows: int, num_ranks: int, tmp_path: Path
) -> None:
    case = case_of(write_rows(tmp_path, 203))
    ids = [row for rank in range(num_ranks) for row in ids_of(case.stream(rank, num_ranks).every_row(max_rows))]
    assert len(set(ids)) == len(ids) == rows
    assert sorted(ids) == sorted(ids_of(case.stream().every_row(max_rows)))


def test_an_evaluation_of_fewer_rows_than_lanes_is_refused(tmp_path: Path) -> None:
    case = case_of(write_rows(tmp_path, 3))
    with pytest.raises(UserError) as caught:
        next(case.stream().every_row())
    assert str(caught.value) == (
        "data.lanes: 4 lanes, but the all part of the dataset has only 3 rows; lower data.lanes or raise data.held_out"
    )


def test_an_evaluation_of_no_rows_is_empty(tmp_path: Path) -> None:
    case = case_of(write_rows(tmp_path, 50), selection=Selection(part="validation", held_out=0))
    assert list(case.stream().every_row()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_rows": 10}, "data.batch_rows: 10 is not a multiple of data.lanes 4; use 8"),
        ({"batch_rows": 52}, "batch_rows: 52 is larger than the 50 training rows of the dataset"),
    ],
)
def test_batches_that_cannot_be_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    case = case_of(write_rows(tmp_path, 50), **changes)
    with pytest.raises(UserError) as caught:
        case.stream().batch(0)
    assert str(caught.value) == message


def test_more_ranks_than_lanes_are_refused(tmp_path: Path) -> None:
    case = case_of(write_rows(tmp_path, 50))
    with pytest.raises(UserError, match="workers: 5 data-parallel workers, but the stream has 4 lanes"):
        case.stream(rank=0, num_ranks=5)


def test_a_flipped_byte_ends_the_stream_with_its_place(tmp_path: Path) -> None:
    written = write_rows(tmp_path, [40, 48])
    shard = written.manifest.shards[1]
    data = bytearray(written.store.read(shard.file))
    data[shard.offsets["x"] + 2 * CHUNK_ROWS * 8 + 5] ^= 1
    written.store.write(shard.file, bytes(data))
    with pytest.raises(CorruptDataError, match=r"shard shards/000001.safetensors, x, chunk 2: checksum "):
        epoch_of(case_of(written, batch_rows=4).stream())


# A training: batch after batch, the next one made while the caller works ---------------------------------------------


def trained(stream: BatchStream, steps: range) -> list[list[int]]:
    return list(stream.batches(steps, lambda batch: batch.row_ids.tolist()))


def test_a_training_sees_the_batches_of_its_steps(case: Case) -> None:
    stream, other = case.stream(), case.stream()
    steps = stream.steps_per_epoch
    for part in (range(3 * steps), range(1, 2), range(steps - 1, steps + 1), range(5, 5)):
        assert trained(stream, part) == [other.batch(step).row_ids.tolist() for step in part]


def test_the_number_of_ranks_may_change_in_the_middle_of_an_epoch(case: Case) -> None:
    whole = case.stream()
    steps = whole.steps_per_epoch
    expected = trained(whole, range(2 * steps))
    pieces = [int(place) for place in np.linspace(0, 2 * steps, 8)]
    seen: list[list[int]] = []
    for begin, end, num_ranks in zip(pieces, pieces[1:], [1, 2, 3, 4, 2, 1, 3], strict=False):
        ranks = [trained(case.stream(rank, num_ranks), range(begin, end)) for rank in range(num_ranks)]
        assert {len(rank) for rank in ranks} == {end - begin}, "every rank does the same number of steps"
        seen += [[row for part in parts for row in part] for parts in zip(*ranks, strict=True)]
    assert seen == expected


def test_a_training_asks_for_each_window_that_it_needs_once_and_for_no_other(case: Case) -> None:
    stream, requested = counted_stream(case)
    steps = stream.steps_per_epoch
    for stop in (1, steps // 2, steps, steps + 1):
        requested.clear()
        trained(stream, range(stop))
        needed = counted_stream(case)
        for step in range(stop):
            needed[0]._rows(*step_rows(needed[0], step))
        assert sorted(requested) == sorted(needed[1])


def step_rows(stream: BatchStream, step: int) -> tuple[int, int, int]:
    epoch, index = divmod(step, stream.steps_per_epoch)
    share = stream.batch_rows // stream.spec.lanes
    return epoch, index * share, (index + 1) * share


def test_the_next_batch_is_made_while_the_caller_works_on_one(tmp_path: Path) -> None:
    stream = case_of(write_rows(tmp_path, 200)).stream()
    made = [threading.Event() for _ in range(4)]

    def ready(batch: Batch) -> int:
        step = sum(event.is_set() for event in made)
        made[step].set()
        return step

    batches = stream.batches(range(4), ready)
    for step in range(4):
        assert next(batches) == step
        assert step == 3 or made[step + 1].wait(60), "made before it is asked for"
        assert step > 1 or not made[step + 2].is_set(), "but no more than one ahead"
    assert next(batches, None) is None


def test_an_error_is_raised_in_the_step_that_needs_the_batch(tmp_path: Path) -> None:
    written = write_rows(tmp_path, 88)
    stream = case_of(written, batch_rows=4, lanes=1, window_bytes=1).stream()
    damaged = int(stream.batch(10).row_ids[0]) // CHUNK_ROWS  # a window is a chunk, and a chunk two batches
    (shard,) = written.manifest.shards
    data = bytearray(written.store.read(shard.file))
    data[shard.offsets["x"] + damaged * CHUNK_ROWS * 8] ^= 1
    written.store.write(shard.file, bytes(data))
    batches = stream.batches(range(22), lambda batch: batch.row_ids)
    assert [len(next(batches)) for _ in range(10)] == [4] * 10
    with pytest.raises(CorruptDataError, match=rf"shard shards/000000.safetensors, x, chunk {damaged}: checksum "):
        next(batches)


def test_a_training_that_ends_early_leaves_no_thread_behind(tmp_path: Path) -> None:
    stream = case_of(write_rows(tmp_path, 200)).stream()
    batches = stream.batches(range(16), lambda batch: batch)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
    assert not stream._held
    assert trained(stream, range(3)) == [stream.batch(step).row_ids.tolist() for step in range(3)]


def test_waiting_is_what_the_caller_waits_and_not_what_the_thread_works(tmp_path: Path) -> None:
    stream = case_of(write_rows(tmp_path, 200)).stream()
    slow = 0.05

    def ready(batch: Batch) -> Batch:
        time.sleep(slow)
        return batch

    began = time.perf_counter()
    for _ in stream.batches(range(8), ready):
        time.sleep(2 * slow)
    elapsed = time.perf_counter() - began
    assert slow <= stream.stats.wait_s <= elapsed - 8 * 2 * slow, "the first batch at least; never while it worked"


def test_what_a_stream_read_is_counted(case: Case) -> None:
    stream = case.stream()
    trained(stream, range(stream.steps_per_epoch))
    row_bytes = sum(site.row_bytes for site in case.written.manifest.sites.values())
    assert stream.stats.bytes_served >= stream.steps_per_epoch * case.batch_rows * (row_bytes + 8)
    read = stream.stats.read
    assert read.disk_bytes == 0
    # Two windows that are read at once have the chunk between them but once.
    assert read.store_bytes + read.memory_bytes >= stream.steps_per_epoch * case.batch_rows * row_bytes
    special = np.isin(case.written.columns["token_id"], case.written.manifest.special_token_ids)
    assert stream.rows_filtered == special.sum() == case.written.rows - stream.total_rows


def test_an_evaluation_lets_its_windows_go(tmp_path: Path) -> None:
    stream = case_of(write_rows(tmp_path, 200)).stream()
    rows = stream.every_row()
    next(rows)
    assert stream._held
    assert len(list(rows)) > 3
    assert not stream._held
