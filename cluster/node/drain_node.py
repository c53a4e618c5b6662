"""Tell Ray that the node of this machine or pod is taken away; what a provisioned node runs when it hears of its end.

    python -m lexray.cluster.node.drain_node HEAD INSTANCE DEADLINE_S REASON

HEAD is `host:port` of Ray's head, INSTANCE the `RAY_CLOUD_INSTANCE_ID` under which the node was started: an instance's
id on EC2, a pod's name under KubeRay. Ray's own `ray drain-node` would guess which node is meant, by the processes that
it sees, and where it sees the head's it takes the head. This file imports Ray and the standard library alone: it also
runs where the image has no lexray.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from typing import Any

from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION  # type: ignore[attr-defined]  # generated
from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]


def node_of(instance: str, nodes: Iterable[Any]) -> str:
    """Id, in hexadecimal, of the one living node that was started as this instance.

    Raises LookupError unless it is exactly one.
    """
    if not instance:
        raise LookupError("RAY_CLOUD_INSTANCE_ID is empty: which node is to leave cannot be told")
    living = [node for node in nodes if node.state == GcsNodeInfo.ALIVE]
    found = [node.node_id.hex() for node in living if node.instance_id == instance]
    if len(found) != 1:
        raise LookupError(f"{len(found)} of Ray's {len(living)} living nodes are {instance!r}, not one")
    return str(found[0])


def drain_node(head: str, instance: str, *, deadline_s: float, reason: str) -> None:
    """Drain the node: trials move away, nothing new comes, and what is left ends in `deadline_s`.

    Raises LookupError when the node is not known, RuntimeError when Ray refuses.
    """
    gcs = GcsClient(address=head)
    node = node_of(instance, gcs.get_all_node_info().values())
    deadline_ms = int(1000 * (time.time() + deadline_s))
    is_accepted, why_not = gcs.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, reason, deadline_ms)
    if not is_accepted:
        raise RuntimeError(f"Ray does not let node {node} ({instance}) go: {why_not}")


if __name__ == "__main__":
    _, head, instance, deadline_s, reason = sys.argv
    drain_node(head, instance, deadline_s=float(deadline_s), reason=reason)
