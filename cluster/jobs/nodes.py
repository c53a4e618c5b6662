"""Resources available to a submitted sweep: the cluster's current nodes, or its pools at their largest."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lexray.cluster.provisioned.description import ClusterDescription, Pool
from lexray.tuning.placement.memory_split import memory_split

if TYPE_CHECKING:
    from lexray.tuning.planning.plan import Machines


def machines_of(description: ClusterDescription | None, nodes: Sequence[dict[str, Any]]) -> Machines:
    """Return the described pools at their largest, or else the current nodes."""
    from lexray.tuning.placement.nodes import Node, trials_on_head
    from lexray.tuning.planning.plan import Machines

    totals = [node["resources_total"] for node in nodes]
    most = trials_on_head(totals)
    if description is not None and description.pools:
        pools = [pool for pool in description.pools for _ in range(pool.max_nodes)]
        stores = [memory_split(pool.memory_gib).store for pool in pools]
        return Machines(nodes=[_node(pool) for pool in pools], object_store_bytes=stores, trials_on_head=most)
    return Machines(
        nodes=[
            Node(cpus=float(t.get("CPU", 0.0)), gpus=float(t.get("GPU", 0.0)), memory_bytes=float(t.get("memory", 0.0)))
            for t in totals
        ],
        object_store_bytes=[int(total.get("object_store_memory", 0)) for total in totals],
        trials_on_head=most,
    )


def gpu_memory_gib(description: ClusterDescription | None) -> float | None:
    """Memory of the pools' smallest GPU; None if no pool states it."""
    pools = description.pools if description is not None else ()
    return min((pool.gpu_memory_gib for pool in pools if pool.gpus and pool.gpu_memory_gib), default=None)


def all_are_here(nodes: Sequence[dict[str, Any]]) -> bool:
    """Return whether every node is this machine, so that local folders are visible to them."""
    return bool(nodes) and all(_is_own_address(str(node["node_ip"])) for node in nodes)


def _node(pool: Pool) -> Any:
    from lexray.tuning.placement.nodes import Node

    return Node(pool.cpus, float(pool.gpus), float(memory_split(pool.memory_gib).heap), zone=pool.zone)


def _is_own_address(address: str) -> bool:
    """Return whether the address is this machine's: only then can a socket bind to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
