"""The memory of streams is known before the first step: a bound on what they take, or one line that says no."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from synthetic import write_rows

from lexray.storage.errors import UserError
from lexray.storage.selection import Selection
from lexray.storage.stream import local_stream
from lexray.storage.stream_memory import (
    NodeMemory,
    StreamMemory,
    StreamShape,
    check_memory,
    node_memory,
    stream_memory,
    stream_shape,
)
from lexray.storage.windows import StreamSpec

GiB, MiB = 2**30, 2**20

SHAPE = StreamShape(
    row_bytes=8192,
    chunk_rows=1024,
    chunks_per_window=2,
    lanes=16,
    batch_rows=4096,
    train_share=0.95,
    held_out_share=0.05,
    dataset_rows=10**8,
)
ENOUGH = NodeMemory(machine=10**15, shared=10**15)


@pytest.mark.parametrize("batch_rows", [16, 64, 128, 256, 512])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_no_consumer_holds_more_than_its_shape_says(batch_rows: int, num_ranks: int, tmp_path: Path) -> None:
    """Windows in use, and those asked for, whatever the batch is to a window."""
    written = write_rows(tmp_path, [1031, 997], sites={"x": 4, "y": 8})
    spec = StreamSpec(store=written.store, sites=("x", "y"), selection=Selection(part="all"), lanes=4, window_bytes=256)
    shape = stream_shape(
        written.manifest,
        spec.sites,
        window_bytes=spec.window_bytes,
        lanes=spec.lanes,
        batch_rows=batch_rows,
        workers=num_ranks,
        train_rows=written.rows,
        held_out_rows=0,
    )
    assert shape.window_bytes == 2 * 8 * (8 + 16 + 16)
    for rank in range(num_ranks):
        stream = local_stream(spec, batch_rows=batch_rows, rank=rank, num_ranks=num_ranks)
        largest = 0
        for step in range(2 * stream.steps_per_epoch):
            stream.batch(step)
            coming: Any = stream._requested.values()
            windows = [*stream._held.values(), *(request.result() for request in coming)]
            largest = max(largest, sum(window.bytes for window in windows))
        assert shape.mapped_bytes / 8 < largest <= shape.mapped_bytes


def test_the_estimate_grows_with_consumers_and_leaves_room_before_ray_spills() -> None:
    assert SHAPE.mapped_bytes == pytest.approx(2 * 16 * SHAPE.window_bytes + 2 * 4096 * 8200, rel=1e-6)
    one, eight = (stream_memory([SHAPE], consumers=n, object_store_bytes=100 * GiB) for n in (1, 8))
    assert (one.mapped, eight.mapped) == (SHAPE.mapped_bytes, 8 * SHAPE.mapped_bytes)
    assert one.kept == eight.kept == int(0.3 * 100 * GiB)
    assert eight.total > eight.shared > one.shared
    many = stream_memory([SHAPE], consumers=100, object_store_bytes=100 * GiB)
    assert many.kept == int(0.7 * 100 * GiB) - many.mapped, "what consumers leave of the share"
    full = stream_memory([SHAPE], consumers=200, object_store_bytes=100 * GiB)
    assert full.kept == SHAPE.mapped_bytes, "always enough for one of them"


def test_a_small_dataset_needs_no_more_than_it_has() -> None:
    small = replace(SHAPE, dataset_rows=1000)
    memory = stream_memory([small], consumers=64, object_store_bytes=GiB)
    assert memory.shared <= 4 * 1000 * 8208
    check_memory(memory, object_store_bytes=GiB, node=ENOUGH)


def test_the_largest_of_several_trials_counts() -> None:
    wide = replace(SHAPE, row_bytes=3 * 8192)
    both = stream_memory([SHAPE, wide], consumers=2, object_store_bytes=100 * GiB)
    assert both == stream_memory([wide], consumers=2, object_store_bytes=100 * GiB)


def test_filtered_rows_take_no_memory_and_wide_windows_less_than_narrow_ones() -> None:
    half = replace(SHAPE, train_share=0.5, held_out_share=0.0)
    assert half.mapped_bytes < 0.6 * SHAPE.mapped_bytes
    narrow = replace(SHAPE, chunks_per_window=1, chunk_rows=100)
    assert narrow.windows_per_lane == (256 - 2) // 95 + 3


MEMORY = StreamMemory(kept=GiB, mapped=4 * GiB, buffers=GiB, consumers=8)


def refused(**changes: Any) -> str:
    fits: dict[str, Any] = {"object_store_bytes": 10 * GiB, "node": NodeMemory(machine=20 * GiB, shared=8 * GiB)}
    check_memory(MEMORY, **fits)
    with pytest.raises(UserError) as caught:
        check_memory(MEMORY, **(fits | changes))
    return str(caught.value)


def test_what_does_not_fit_is_refused_with_both_numbers_and_what_to_lower() -> None:
    lower = "lower data.window_bytes or data.lanes, or run fewer workers at once (resources.cpus_per_worker)"
    assert refused(object_store_bytes=6 * GiB) == (
        "data.window_bytes: 8 worker(s) on a node hold windows of up to 5.0 GiB, "
        f"Ray's object store has room for 4.2 GiB before it writes to disk; {lower}"
    )
    assert refused(node=NodeMemory(machine=20 * GiB, shared=64 * MiB)) == (
        "data.window_bytes: 8 worker(s) on a node hold windows of up to 5.0 GiB, "
        f"/dev/shm has 64.0 MiB; enlarge it (docker: --shm-size), or {lower}"
    )
    assert refused(node=NodeMemory(machine=6 * GiB, shared=None)) == (
        "data.window_bytes: streams take up to 6.0 GiB on a node with 6.0 GiB of memory, "
        f"of which 5.4 GiB may be theirs; {lower}"
    )


def test_the_estimate_is_one_line() -> None:
    assert str(MEMORY) == (
        "stream: up to 6.0 GiB on a node: 1.0 GiB of windows kept for all, "
        "4.0 GiB of windows in use by 8 worker(s), 1.0 GiB of buffers"
    )


def test_this_node_has_memory() -> None:
    found = node_memory()
    assert 2**28 < found.machine < 2**50
    assert found.shared is None or found.shared > 0
