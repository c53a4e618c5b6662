"""The window server: one reader of the store for all consumers of a node, and nothing else changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.cloudpickle
from synthetic import Written, write_rows

from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.manifest import load_manifest
from lexray.storage.order import WindowKey
from lexray.storage.selection import Selection
from lexray.storage.server import ServedWindows, start_server
from lexray.storage.stream import BatchStream, local_stream
from lexray.storage.windows import StreamSpec, Window, WindowReader

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not find the folders of tests

LANES, BATCH_ROWS = 4, 20
WINDOW_BYTES = 2 * 8 * 8
"""Two chunks of 4-wide bfloat16 rows."""


@pytest.fixture(scope="module")
def start(ray_session: Any) -> Any:
    """Starts servers on this node; they end with the module."""
    servers = []

    def build(keep_bytes: int) -> Any:
        servers.append(start_server(ray.get_runtime_context().get_node_id(), keep_bytes=keep_bytes))
        return servers[-1]

    yield build
    for server in servers:
        ray.kill(server)


@pytest.fixture(scope="module")
def server(start: Callable[[int], Any]) -> Any:
    """A server that keeps every window of these tests."""
    return start(2**24)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write_rows(tmp_path, [131, 97, 61])


def spec_of(written: Written, **changes: Any) -> StreamSpec:
    settings = {"selection": Selection(held_out=0.1), "lanes": LANES, "window_bytes": WINDOW_BYTES, "seed": 2}
    return StreamSpec(store=written.store, sites=("x",), **(settings | changes))


def served_stream(spec: StreamSpec, server: Any, rank: int = 0, num_ranks: int = 1) -> BatchStream:
    source = ServedWindows(spec, server)
    return BatchStream(spec=spec, source=source, batch_rows=BATCH_ROWS, rank=rank, num_ranks=num_ranks)


def contents(stream: BatchStream, steps: range) -> list[tuple[list[int], list[float]]]:
    """Row ids and values of batches."""
    batches = [stream.batch(step) for step in steps]
    return [(batch.row_ids.tolist(), batch.vectors["x"].flatten().tolist()) for batch in batches]


@ray.remote(num_cpus=1)
def contents_elsewhere(spec: StreamSpec, server: Any, steps: range) -> list[tuple[list[int], list[float]]]:
    """The same of a consumer in another process."""
    return contents(served_stream(spec, server), steps)


def keys_of(spec: StreamSpec) -> list[WindowKey]:
    """All windows of the first epoch."""
    order = WindowReader(spec).order(0)
    return [WindowKey(0, lane, i) for lane in range(spec.lanes) for i in range(len(order.windows(lane)))]


def get(server: Any, spec: StreamSpec, key: WindowKey) -> Window:
    source = ServedWindows(spec, server)
    return source.fetch(source.request(key))


def test_served_windows_are_those_read_locally(server: Any, written: Written) -> None:
    spec = spec_of(written)
    reader = WindowReader(spec)
    described = ServedWindows(spec, server).describe()
    assert described.manifest == load_manifest(written.store)
    assert described.selected_rows.tolist() == reader.selected.counts.tolist()
    for key in keys_of(spec):
        served, local = get(server, spec, key), reader.read(key)
        assert served.row_ids.tolist() == local.row_ids.tolist()
        np.testing.assert_array_equal(served.vectors["x"], local.vectors["x"])


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_a_served_stream_is_the_local_one(num_ranks: int, server: Any, written: Written) -> None:
    spec = spec_of(written)
    for rank in range(num_ranks):
        local = local_stream(spec, batch_rows=BATCH_ROWS, rank=rank, num_ranks=num_ranks)
        steps = range(2 * local.steps_per_epoch)
        assert contents(served_stream(spec, server, rank, num_ranks), steps) == contents(local, steps)


def test_all_consumers_together_read_the_store_once(start: Callable[[int], Any], written: Written) -> None:
    server = start(2**24)  # one that no earlier stream still asks for windows
    spec = spec_of(written)
    before = ray.get(server.stats.remote())
    here = served_stream(spec, server)
    epoch = range(here.steps_per_epoch)
    elsewhere = contents_elsewhere.remote(spec, server, epoch)
    assert contents(here, epoch) == contents(served_stream(spec, server), epoch) == ray.get(elsewhere)
    keys = {*keys_of(spec), *(WindowKey(1, lane, 0) for lane in range(LANES))}  # the next epoch is prefetched
    windows = [get(server, spec, key) for key in keys]
    after = ray.get(server.stats.remote())
    assert after.windows_read - before.windows_read == len(keys)
    assert after.read.store_bytes == sum(window.cost.bytes for window in windows)
    assert (after.read.disk_bytes, after.read.memory_bytes) == (0, 0)
    assert after.windows_served - before.windows_served >= 3 * len(keys_of(spec))
    assert after.bytes_served > 2 * after.read.store_bytes


def test_a_window_asked_for_by_many_at_once_is_read_once(start: Callable[[int], Any], written: Written) -> None:
    server = start(2**24)  # one that no earlier stream still asks for windows
    spec = spec_of(written)
    before = ray.get(server.stats.remote())
    source = ServedWindows(spec, server)
    handles = [source.request(WindowKey(0, 0, 0)) for _ in range(20)]
    assert len({tuple(source.fetch(handle).row_ids) for handle in handles}) == 1
    after = ray.get(server.stats.remote())
    assert (after.windows_read - before.windows_read, after.windows_served - before.windows_served) == (1, 20)


def test_streams_of_one_dataset_that_differ_have_windows_of_their_own(server: Any, written: Written) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"seed": 3},
        {"selection": Selection(part="validation", held_out=0.1)},
        {"lanes": 2},
        {"window_bytes": 10 * WINDOW_BYTES},
    ]
    specs = [spec_of(written, **change) for change in changes]
    key = WindowKey(0, 1, 0)
    served = [get(server, spec, key).row_ids.tolist() for spec in specs]
    assert len(set(map(tuple, served))) == len(specs)
    assert served == [WindowReader(spec).read(key).row_ids.tolist() for spec in specs]


def test_consumers_share_one_block_that_none_can_change(server: Any, written: Written) -> None:
    first, second = (get(server, spec_of(written), WindowKey(0, 0, 0)) for _ in range(2))
    for a, b in ((first.row_ids, second.row_ids), (first.vectors["x"], second.vectors["x"])):
        assert a.ctypes.data == b.ctypes.data
        assert not a.flags.writeable


def test_what_is_kept_stays_within_the_budget(start: Callable[[int], Any], written: Written) -> None:
    spec = spec_of(written)
    keys = keys_of(spec)
    reader = WindowReader(spec)
    sizes = [reader.read(key).bytes for key in keys]
    small = start(sum(sizes[:3]))

    def windows_read(wanted: list[WindowKey]) -> int:
        """Windows that the server has to read for these."""
        before = ray.get(small.stats.remote()).windows_read
        for key in wanted:
            assert get(small, spec, key).row_ids.tolist() == reader.read(key).row_ids.tolist()
        return int(ray.get(small.stats.remote()).windows_read - before)

    assert windows_read(keys[:3]) == 3
    assert windows_read([*keys[:3], keys[0]]) == 0, "all three fit"
    assert windows_read([keys[3]]) == 1
    assert windows_read([keys[0]]) == 0, "used last"
    assert windows_read([keys[1]]) == 1, "used longest ago, let go for the fourth"
    assert windows_read(keys) + windows_read(keys) >= 2 * len(keys) - 6
    local = local_stream(spec, batch_rows=BATCH_ROWS)
    steps = range(local.steps_per_epoch)
    assert contents(served_stream(spec, small), steps) == contents(local, steps)


def test_a_stream_goes_on_with_the_same_rows_when_its_server_is_killed(
    start: Callable[[int], Any], written: Written
) -> None:
    mortal = start(2**24)
    spec = spec_of(written)
    local = local_stream(spec, batch_rows=BATCH_ROWS)
    expected = contents(local, range(3 * local.steps_per_epoch))
    stream = served_stream(spec, mortal)
    seen = contents(stream, range(4))
    ray.kill(mortal, no_restart=False)
    while ray.get(mortal.stats.remote()).windows_read:  # a new server has read none
        time.sleep(0.01)
    seen += contents(stream, range(4, 10))
    assert ray.get(mortal.stats.remote()).windows_read
    ray.kill(mortal, no_restart=False)  # once more, while it is asked
    seen += contents(stream, range(10, len(expected)))
    assert seen == expected


def test_errors_arrive_in_one_line_as_they_were_raised(server: Any, written: Written, tmp_path: Path) -> None:
    missing = StreamSpec(store=written.store.at_path("nothing"), sites=("x",))
    with pytest.raises(UserError) as refused:
        ServedWindows(missing, server).describe()
    assert str(refused.value) == (
        f"dataset {written.store.url}/nothing: no manifest.json there; run `lexray harvest` or fix the url"
    )
    one = write_rows(tmp_path / "one", 30, rows_per_document=30)
    with pytest.raises(UserError) as refused:
        ServedWindows(spec_of(one), server).describe()
    assert str(refused.value) == ("data.held_out: the dataset has 1 document, which cannot be split; use 2 or more")

    shard = written.manifest.shards[2]
    data = bytearray(written.store.read(shard.file))
    data[shard.offsets["x"] + 8 * 8] ^= 1
    written.store.write(shard.file, bytes(data))
    spec = spec_of(written)
    with pytest.raises(CorruptDataError) as corrupt:
        [get(server, spec, key) for key in keys_of(spec)]
    assert str(corrupt.value).startswith("shard shards/000002.safetensors, x, chunk 1: checksum ")
    assert "\n" not in str(corrupt.value)
