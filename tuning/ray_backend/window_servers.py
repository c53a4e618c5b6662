"""The window servers of a sweep: one on each node that has workers, within the memory that the node has for streams."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.server import Publish, start_server
from lexray.storage.stream_memory import (
    NodeMemory,
    StreamMemory,
    StreamShape,
    check_memory,
    node_memory,
    stream_memory,
)
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.streams import most_workers, takes_workers
from lexray.tuning.trials import Trial

IDLE_S = 30.0
"""Seconds that a server stays on a node without workers: the next trial may reuse its windows."""


@dataclass(kw_only=True)
class WindowServers:
    """Starts servers on nodes that get workers and ends them afterwards. They end with this process."""

    trials: Sequence[Trial]
    """Trials that may run; with `shapes` they determine how much a server keeps."""
    shapes: Sequence[StreamShape]
    cache: CacheSettings | None
    publish: Publish | None = None
    """Publishes each server's statistics."""
    _servers: dict[str, Any] = field(default_factory=dict)
    _used_s: dict[str, float] = field(default_factory=dict)

    def check(self, nodes: Mapping[str, Node]) -> list[str]:
        """Return the memory of streams, one line for each kind of node, after reading every node's own memory.

        Raises UserError if a node that may get workers lacks memory for its server.
        """
        used = [node_id for node_id, node in nodes.items() if takes_workers(self.trials, node)]
        needed = {node_id: self._memory(node_id, nodes[node_id]) for node_id in used}
        found = _memory_of_nodes(used)
        for node_id, (memory, store_bytes) in needed.items():
            check_memory(memory, object_store_bytes=store_bytes, node=found[node_id])
        return sorted({str(memory) for memory, _ in needed.values()})

    def on(self, nodes: Mapping[str, Node]) -> dict[str, Any]:
        """Return the servers of these nodes by node id; start missing ones."""
        for node_id in [node_id for node_id in nodes if node_id not in self._servers]:
            memory, _ = self._memory(node_id, nodes[node_id])
            self._servers[node_id] = start_server(
                node_id, keep_bytes=memory.kept, cache=self.cache, publish=self.publish
            )
        return {node_id: self._servers[node_id] for node_id in nodes}

    def keep_only(self, used: Collection[str], staying: Collection[str], now_s: float) -> None:
        """End the servers of nodes idle for `IDLE_S` seconds, and at once those of draining nodes.

        Ray releases a draining node as soon as nothing runs there.
        """
        self._used_s |= dict.fromkeys(used, now_s)
        for node_id in [node_id for node_id in self._servers if node_id not in used]:
            idle_s = now_s - self._used_s.setdefault(node_id, now_s)
            if node_id not in staying or idle_s >= IDLE_S:
                self._end(node_id)

    def close(self) -> None:
        for node_id in list(self._servers):
            self._end(node_id)

    def _end(self, node_id: str) -> None:
        ray.kill(self._servers.pop(node_id))
        self._used_s.pop(node_id, None)

    def _memory(self, node_id: str, node: Node) -> tuple[StreamMemory, int]:
        """Return the memory of a node's streams, and the size of its object store."""
        stores = {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in ray.nodes()}
        consumers = most_workers(self.trials, node)
        store_bytes = stores.get(node_id, 0)
        return stream_memory(self.shapes, consumers=consumers, object_store_bytes=store_bytes), store_bytes


def _memory_of_nodes(node_ids: Sequence[str]) -> dict[str, NodeMemory]:
    """Return the memory that each node reports."""
    own = ray.get_runtime_context().get_node_id()
    asked = {
        node_id: ray.remote(node_memory)
        .options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False))
        .remote()
        for node_id in node_ids
        if node_id != own
    }
    found = dict(zip(asked, ray.get(list(asked.values())), strict=True))
    return found | ({own: node_memory()} if own in node_ids else {})
