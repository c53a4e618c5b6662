"""Reports why a Ray cluster gets no nodes: failed launches, from Ray's own report."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Protocol

import ray
from ray.autoscaler.v2.sdk import get_cluster_status

RECENT_S = 120.0
"""Seconds that a failed launch counts: an autoscaler in need of nodes retries several times a minute."""
_WRAPPING = re.compile(r"^launch failed with (Failed to launch \d+ nodes of type \S+ with request id \S*:\s*)?")
_ADVICE = {
    "VcpuLimitExceeded": "ask AWS for a larger vCPU quota (Service Quotas, Amazon EC2), or use a smaller instance type",
    "MaxSpotInstanceCountExceeded": "ask AWS for a larger Spot quota (Service Quotas, Amazon EC2), or use ON_DEMAND",
    "InsufficientInstanceCapacity": "name further zones or instance types, set on_demand_fallback, or wait",
    "InvalidAMIID": "set ami_id to an image of this region and run `lexray up` again",
    "UnauthorizedOperation": "run `lexray up` again to renew the head's rights, or ask who restricts the account",
    "ServiceLinkedRole": "run `aws iam create-service-linked-role --aws-service-name spot.amazonaws.com`",
    "Unsupported": "choose another instance type or zone: this zone does not offer the type",
}
"""Remedies, by a part of AWS's error code."""


class Launch(Protocol):
    """A failed launch as `ray.autoscaler.v2.schema.LaunchRequest` has it."""

    ray_node_type_name: str
    failed_ts_s: int | None
    details: str | None


def launch_failures(recent_s: float = RECENT_S) -> list[str]:
    """Return why the connected cluster's autoscaler launches no nodes, as `failure_lines`.

    Raises what Ray raises when its GCS does not answer.
    """
    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    return failure_lines(status.failed_launches, time.time(), recent_s)


def failure_lines(launches: Iterable[Launch], now_s: float, recent_s: float = RECENT_S) -> list[str]:
    """Return `pool NAME: no node can be launched: CAUSE; ADVICE` for each pool, by the newest failure of each."""
    newest: dict[str, Launch] = {}
    for launch in sorted(launches, key=lambda launch: launch.failed_ts_s or 0):
        if now_s - (launch.failed_ts_s or 0) <= recent_s:
            newest[launch.ray_node_type_name] = launch
    return [
        f"pool {pool}: no node can be launched: {_with_advice(_cause(launch))}"
        for pool, launch in sorted(newest.items())
    ]


def _cause(launch: Launch) -> str:
    text = _WRAPPING.sub("", " ".join((launch.details or "").split()))
    return text or "Ray does not say why; see monitor.log on the head"


def _with_advice(cause: str) -> str:
    advice = [advice for code, advice in _ADVICE.items() if code in cause]
    return "; ".join([cause, *advice])
