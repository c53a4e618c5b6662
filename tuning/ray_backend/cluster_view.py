"""Snapshots of the connected Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.state import available_resources_per_node, state

from lexray.tuning.placement.allocator import NodeState, View
from lexray.tuning.placement.memory_split import store_beside
from lexray.tuning.placement.nodes import ZONE, Node, trials_on_head
from lexray.tuning.planning.plan import Machines

MAX_TO_COME = 64
"""Limit on future nodes of each kind that are considered: no trial is wider."""

RECENT_S = 1.0
"""Maximum age in seconds of a snapshot used for placement; Ray's own data is as old."""


@dataclass
class RecentView:
    """A snapshot at most `RECENT_S` old, shared by all trials that request it meanwhile."""

    look: Callable[[], View]
    clock: Callable[[], float]
    """Returns the current time in seconds."""
    _last: View | None = None
    _looked_s: float = 0.0

    def __call__(self) -> View:
        if self._last is None or not 0 <= self.clock() - self._looked_s < RECENT_S:
            return self.now()
        return self._last

    def now(self) -> View:
        """Take a new snapshot."""
        self._looked_s = self.clock()
        self._last = self.look()
        return self._last


def cluster_view() -> View:
    """Return live nodes, their free resources, which are draining, and what an autoscaler could add."""
    available = available_resources_per_node()
    leaving = state.get_draining_nodes()
    alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    nodes = {
        node_id: NodeState(
            total=_node(node["Resources"], node.get("Labels", {}).get(ZONE)),
            available=_node(available.get(node_id, node["Resources"])),
            is_leaving=node_id in leaving,
        )
        for node_id, node in alive.items()
    }
    return View(nodes=nodes, to_come=dict(_to_come(list(alive.values()))))


def living_nodes() -> dict[str, Node]:
    """Return the total resources of the live nodes by node id."""
    return {node_id: state.total for node_id, state in cluster_view().nodes.items()}


def cluster_machines() -> Machines:
    """Return the resources available to a sweep: live nodes, and those that an autoscaler could add."""
    view, told = cluster_view(), ray.nodes()
    stores = {node["NodeID"]: int(node["Resources"].get("object_store_memory", 0)) for node in told}
    nodes = {**{node_id: state.total for node_id, state in view.nodes.items()}, **view.to_come}
    to_come = {name: store_beside(node.memory_bytes) for name, node in view.to_come.items()}
    return Machines(
        nodes=list(nodes.values()),
        object_store_bytes=[{**stores, **to_come}[node_id] for node_id in nodes],
        trials_on_head=trials_on_head(node["Resources"] for node in told if node["Alive"]),
    )


def _node(resources: Mapping[str, float], zone: str | None = None) -> Node:
    cpus, gpus, memory_bytes = (float(resources.get(name, 0.0)) for name in ("CPU", "GPU", "memory"))
    return Node(cpus, gpus, memory_bytes, zone)


def zone_resource(zone: str) -> str:
    """Return the resource name that encodes the zone of a node group: Ray's record of such groups has no labels."""
    return f"{ZONE}={zone}"


def _to_come(alive: list[dict[str, Any]]) -> Iterator[tuple[str, Node]]:
    """Yield future nodes: for each autoscaler group as many as it can still launch."""
    config = state.get_cluster_config()
    for group in config.node_group_configs if config is not None else ():
        there = sum(node.get("Labels", {}).get("ray.io/node-group") == group.name for node in alive)
        most = group.max_count if group.max_count >= 0 else MAX_TO_COME
        zone = next((name.partition("=")[2] for name in group.resources if name.startswith(f"{ZONE}=")), None)
        for number in range(min(most - there, MAX_TO_COME)):
            yield f"{group.name}/{number}", _node(dict(group.resources), zone)
