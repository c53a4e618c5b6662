"""The window servers of a sweep: one on each node, within the memory that the node has for streams."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from storage.chunk_cache import CacheSettings
from storage.manifest import Manifest
from storage.server import start_server
from storage.stream_memory import NodeMemory, StreamMemory, StreamShape, check_memory, stream_memory, stream_shape
from tuning.placement.nodes import Node
from tuning.planning.row_counts import RowCounts
from tuning.trials import Trial

log = logging.getLogger("lexray")


def shape_of(trial: Trial, manifest: Manifest, counts: RowCounts) -> StreamShape:
    """What decides the memory of a trial's streams."""
    data = trial.config.data
    return stream_shape(
        manifest,
        data.sites,
        window_bytes=data.window_bytes,
        lanes=data.lanes,
        batch_rows=data.batch_rows,
        workers=trial.config.mesh.row_parts(trial.config.dictionary),
        train_rows=counts.training(data),
        held_out_rows=counts.held_out(data),
    )


def most_workers(trials: Sequence[Trial], node: Node) -> int:
    """Workers that a node can have at once, at most."""
    fitting = max(node.workers(trial.footprint) for trial in trials)
    return max(1, min(fitting, sum(trial.footprint.workers for trial in trials)))


def refuse_streams(
    trials: Sequence[Trial], shapes: Sequence[StreamShape], nodes: Sequence[Node], object_store_bytes: Sequence[int]
) -> None:
    """Raise UserError when a node's object store has no room for the windows that its workers would hold."""
    for node, store_bytes in zip(nodes, object_store_bytes, strict=True):
        if trials:
            wanted = stream_memory(shapes, consumers=most_workers(trials, node), object_store_bytes=store_bytes)
            machine = NodeMemory(int(node.memory_bytes) + store_bytes, None)
            check_memory(wanted, object_store_bytes=store_bytes, node=machine)


@contextmanager
def window_servers(
    trials: Sequence[Trial], shapes: Sequence[StreamShape], nodes: dict[str, Node], cache: CacheSettings | None
) -> Iterator[dict[str, Any]]:
    """A window server on each node, by node id. Raises UserError when a node has no room for what they will hold."""
    store_bytes = {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in ray.nodes()}
    memory: dict[str, StreamMemory] = {}
    servers: dict[str, Any] = {}
    try:
        for node_id, node in nodes.items():
            memory[node_id] = stream_memory(
                shapes, consumers=most_workers(trials, node), object_store_bytes=store_bytes[node_id]
            )
            servers[node_id] = start_server(node_id, keep_bytes=memory[node_id].kept, cache=cache)
        for line in sorted({str(of_node) for of_node in memory.values()}):
            log.info(line)
        for node_id, server in servers.items():
            found = ray.get(server.memory.remote())
            check_memory(memory[node_id], object_store_bytes=store_bytes[node_id], node=found)
        yield servers
    finally:
        for server in servers.values():
            ray.kill(server)
