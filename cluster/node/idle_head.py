"""Wait on a head until nobody uses the cluster: `python -m lexray.cluster.node.idle_head MINUTES`.

A cluster is used while a job (submitted, or a driver that joined it) runs or waits, or a node beside its head is alive.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from lexray.cluster.jobs.job_client import RUNNING, JobClient
from lexray.cluster.provisioned.description import DASHBOARD_PORT
from lexray.cluster.provisioned.http import Dashboard
from lexray.cluster.provisioned.tokens import Secret

POLL_S = 30.0


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


def is_used(dashboard: Dashboard) -> bool:
    """Whether a job runs or waits, or a node other than the head is alive."""
    if any(job["status"] in RUNNING for job in dashboard.get("/api/jobs/")):
        return True
    return any(not node.get("is_head_node") for node in JobClient(dashboard).nodes())


def this_head() -> Dashboard:
    """Return the dashboard of the head on this machine, by loopback: the token crosses no network."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    return Dashboard(url=f"http://127.0.0.1:{DASHBOARD_PORT}", what="the head", token=Secret(token) if token else None)


if __name__ == "__main__":
    head = this_head()
    await_idle(lambda: is_used(head), 60 * float(sys.argv[1]))
