"""However many consumers there are, however fast, and on however many nodes: the object store is read once.

Bytes are counted where they leave the S3 server. The dataset has 252 chunks and 4 lanes; a chunk that two lanes share
may be read twice, which is all that the 5 % are for.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import numpy as np
import pytest
import ray
import ray.cloudpickle
from counting_server import Traffic, counting_server
from synthetic import Written, write_rows

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.selection import Selection
from lexray.storage.server import ServedWindows, start_server
from lexray.storage.store import StorageSettings, Store
from lexray.storage.stream import BatchStream, StreamStats, local_stream
from lexray.storage.windows import StreamSpec

pytestmark = pytest.mark.ray
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers do not find the folders of tests

LANES, BATCH_ROWS, CHUNK_ROWS, WIDTH = 4, 80, 16, 64
WINDOW_BYTES = 2 * CHUNK_ROWS * 2 * WIDTH
FEW_WINDOWS = 6 * WINDOW_BYTES


class Data(NamedTuple):
    """A dataset on an S3 server that counts."""

    written: Written
    traffic: Traffic

    @property
    def spec(self) -> StreamSpec:
        selection = Selection(part="all")
        return StreamSpec(
            store=self.written.store, sites=("x",), selection=selection, lanes=LANES, window_bytes=WINDOW_BYTES, seed=4
        )

    @property
    def bytes_read(self) -> int:
        """Bytes of shards that left the server."""
        return self.traffic.total(self.written.store.url.removeprefix("s3://"))

    @property
    def epochs_read(self) -> float:
        """The same in datasets."""
        return self.bytes_read / self.written.manifest.bytes


@pytest.fixture
def data(s3_server: str, request: pytest.FixtureRequest) -> Iterator[Data]:
    bucket = f"sharing-{abs(hash(request.node.name))}"
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket=bucket)
    with counting_server() as (address, traffic):
        store = Store.at(f"s3://{bucket}/data", StorageSettings(endpoint_url=address))
        written = write_rows(store, [1103, 997, 1009, 911], sites={"x": WIDTH}, chunk_rows=CHUNK_ROWS)
        traffic.forget()
        yield Data(written, traffic)


class Consumed(NamedTuple):
    """What a consumer of an epoch saw."""

    row_ids: list[list[int]]
    stats: StreamStats


@ray.remote(num_cpus=1)
def consume(spec: StreamSpec, server: Any, name: str, pause_s: float = 0.0) -> Consumed:
    """One epoch, with so many seconds of work a step."""
    stream = BatchStream(spec=spec, source=ServedWindows(spec, server, name), batch_rows=BATCH_ROWS)
    row_ids = []
    for ids in stream.batches(range(stream.steps_per_epoch), lambda batch: batch.row_ids.tolist()):
        row_ids.append(ids)
        time.sleep(pause_s)
    return Consumed(row_ids, stream.stats)


@pytest.fixture
def serve(ray_session: str) -> Iterator[Any]:
    """Starts servers on this node; they end with the test."""
    servers = []

    def start(keep_bytes: int, cache: CacheSettings | None = None) -> Any:
        servers.append(start_server(ray.get_runtime_context().get_node_id(), keep_bytes=keep_bytes, cache=cache))
        return servers[-1]

    yield start
    for server in servers:
        ray.kill(server)


def assert_read_once(data: Data, epochs: list[Consumed]) -> None:
    """Everybody saw the same rows, each row once; they left the server once; the streams' own counts agree."""
    assert all(epoch.row_ids == epochs[0].row_ids for epoch in epochs)
    seen = np.concatenate(epochs[0].row_ids)
    assert len(np.unique(seen)) == len(seen) >= data.written.rows - BATCH_ROWS
    assert 0.8 < data.epochs_read <= 1.05
    told = sum(epoch.stats.read.store_bytes for epoch in epochs)
    assert 0 <= data.bytes_read - told <= 2 * 4 * data.written.rows, "all but the columns that decide the selection"
    wanted = {epoch.stats.read.bytes for epoch in epochs}
    assert len(wanted) == 1, "whoever they got it from, they wanted the same"


@pytest.mark.slow
def test_four_trials_on_one_node_read_the_store_once(data: Data, serve: Any) -> None:
    server = serve(2**24)
    epochs = ray.get([consume.remote(data.spec, server, f"trial {number}") for number in range(4)])
    assert_read_once(data, epochs)
    assert sum(epoch.stats.read.memory_bytes for epoch in epochs) >= 2.9 * epochs[0].stats.read.bytes


@pytest.mark.slow
def test_a_trial_three_times_slower_reads_what_the_others_left_on_disk(data: Data, serve: Any, tmp_path: Path) -> None:
    server = serve(FEW_WINDOWS, CacheSettings(dir=str(tmp_path), bytes=2**24))
    pauses = [0.01, 0.01, 0.01, 0.03]
    epochs = ray.get([consume.remote(data.spec, server, f"trial {n}", pause) for n, pause in enumerate(pauses)])
    assert_read_once(data, epochs)
    assert sum(epoch.stats.read.disk_bytes for epoch in epochs) > 0


@pytest.mark.slow
def test_trials_that_start_when_the_first_have_ended_read_nothing_from_the_store(
    data: Data, serve: Any, tmp_path: Path
) -> None:
    cache = CacheSettings(dir=str(tmp_path), bytes=2**24)
    first, second = serve(FEW_WINDOWS, cache), serve(FEW_WINDOWS, cache)
    epochs = ray.get([consume.remote(data.spec, first, f"trial {number}") for number in range(4)])
    epochs += ray.get([consume.remote(data.spec, second, f"trial {number}") for number in range(4, 8)])
    assert_read_once(data, epochs)
    assert all(epoch.stats.read.store_bytes == 0 for epoch in epochs[4:])


def test_streams_of_other_sites_and_parts_share_the_chunks_on_disk(s3_server: str, serve: Any, tmp_path: Path) -> None:
    boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1").create_bucket(Bucket="sharing-sites")
    with counting_server() as (address, traffic):
        store = Store.at("s3://sharing-sites/data", StorageSettings(endpoint_url=address))
        written = write_rows(store, [803, 797], sites={"x": 32, "y": 32}, chunk_rows=CHUNK_ROWS)
        traffic.forget()
        server = serve(2**24, CacheSettings(dir=str(tmp_path), bytes=2**24))
        kinds: list[tuple[tuple[str, ...], Any]] = [
            (sites, part) for sites in (("x",), ("x", "y"), ("y", "x")) for part in ("train", "validation")
        ]
        for sites, part in kinds:
            selection = Selection(part=part, held_out=0.1)
            spec = StreamSpec(store=store, sites=sites, selection=selection, lanes=LANES, window_bytes=WINDOW_BYTES)
            stream = BatchStream(spec=spec, source=ServedWindows(spec, server), batch_rows=16)
            for batch in stream.every_row():
                for site in sites:
                    assert batch.vectors[site].equal(written.vectors[site][batch.row_ids])
        columns = sum(1 for _, part in kinds if part) * 2 * 4 * written.rows  # documents and token ids, by each stream
        assert traffic.total("sharing-sites/data") <= written.manifest.bytes + columns


TWO_NODES = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from lexray.storage.selection import Selection
from lexray.storage.server import ServedWindows, start_server
from lexray.storage.store import StorageSettings, Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import StreamSpec

url, endpoint, lanes, window_bytes, batch_rows = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])

@ray.remote(num_cpus=1)
def consume(spec, server, rank):
    source = ServedWindows(spec, server, str(rank))
    stream = BatchStream(spec=spec, source=source, batch_rows=batch_rows, rank=rank, num_ranks=2)
    ids = list(stream.batches(range(stream.steps_per_epoch), lambda batch: batch.row_ids.tolist()))
    return ray.get_runtime_context().get_node_id(), ids, stream.stats.read.store_bytes

cluster = Cluster()
nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
store = Store.at(url, StorageSettings(endpoint_url=endpoint))
choice = Selection(part="all")
spec = StreamSpec(store=store, sites=("x",), selection=choice, lanes=lanes, window_bytes=window_bytes, seed=4)
places = [node["NodeID"] for node in ray.nodes()]
servers = [start_server(place, keep_bytes=2**24) for place in places]
on = [consume.options(scheduling_strategy=NodeAffinitySchedulingStrategy(place, soft=False)) for place in places]
done = ray.get([remote.remote(spec, server, rank) for rank, (remote, server) in enumerate(zip(on, servers))])
print(json.dumps({"places": places, "done": done}))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_two_nodes_that_share_one_trial_read_the_store_once_between_them(data: Data) -> None:
    store = data.written.store
    arguments = [store.url, str(store.settings.endpoint_url), LANES, WINDOW_BYTES, BATCH_ROWS]
    ran = subprocess.run(
        [sys.executable, "-c", TWO_NODES, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=Path(__file__).parents[2],
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout.splitlines()[-1])
    assert [place for place, _, _ in said["done"]] == said["places"]
    assert len(set(said["places"])) == 2
    (_, first, first_bytes), (_, second, second_bytes) = said["done"]
    before = data.bytes_read
    assert 0.8 < data.epochs_read <= 1.05
    assert min(first_bytes, second_bytes) > 0.4 * before, "each node read its lanes"
    local = local_stream(data.spec, batch_rows=BATCH_ROWS)
    whole = local.batches(range(local.steps_per_epoch), lambda batch: batch.row_ids.tolist())
    assert [a + b for a, b in zip(first, second, strict=True)] == list(whole)
