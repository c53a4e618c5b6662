"""Wait on a head until nobody uses the cluster: `python -m lexray.cluster.node.idle_head MINUTES`.

A cluster is used while a job (submitted, or a driver that joined it) runs or waits, or a node beside its head is alive.
This file needs nothing beyond Python: it also runs in images without lexray's libraries.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

DASHBOARD = "http://127.0.0.1:8265"
"""Dashboard of the head on this machine, by loopback: the token crosses no network."""
POLL_S, ANSWER_S = 30.0, 30.0


def await_idle(
    is_used: Callable[[], bool],
    idle_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return once `is_used` was false at every poll for `idle_s` seconds. Raises what it raises."""
    used_s = clock()
    while clock() - used_s < idle_s:
        sleep(POLL_S)
        if is_used():
            used_s = clock()


def is_used(dashboard: str = DASHBOARD) -> bool:
    """Return whether a job runs or waits, or a node other than the head is alive. Raises OSError without an answer."""
    if any(job["status"] in ("PENDING", "RUNNING") for job in _answer(f"{dashboard}/api/jobs/")):
        return True
    nodes = _answer(f"{dashboard}/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
    return any(node["state"] == "ALIVE" and not node.get("is_head_node") for node in nodes)


def _answer(url: str) -> Any:
    """Return the JSON document at `url`, requested with the token of this process and by no proxy."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    request = Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    with build_opener(ProxyHandler({})).open(request, timeout=ANSWER_S) as answer:
        return json.load(answer)


if __name__ == "__main__":
    await_idle(is_used, 60 * float(sys.argv[1]))
