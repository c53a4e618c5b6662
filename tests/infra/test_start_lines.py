"""The start lines that nodes run, as they are, on machines that are network namespaces: Ray's autoscaler on the head
asks a simulated EC2 for a node when there is work, the node joins by its own script, works, and is given back.
"""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest
import rendered
from namespaces import DASHBOARD_PORT, wait_until
from node_scripts import environment, send_work, start, start_head, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(500)]
WAIT_S = 200.0


def status_without_token(address: str) -> int:
    try:
        with urllib.request.urlopen(f"http://{address}:{DASHBOARD_PORT}/api/version", timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_node_comes_for_work_by_its_own_start_line_and_goes_after_it(hosts):
    ec2, env = start_head(hosts)
    assert status_without_token(hosts.addresses["head"]) == 401
    work = send_work(hosts, env)
    wait_until(lambda: "running" in workers(ec2).values(), "an instance for the work", WAIT_S)
    (instance,) = workers(ec2)

    worker = hosts.machine("worker")
    worker_script = rendered.read("worker.sh")
    start(hosts, "worker", worker_script, environment(worker_script, hosts, "worker", instance, "a10g"))
    assert work.wait(timeout=WAIT_S) == 0
    assert f"ran on {worker}" in (hosts.place / "head.log").read_text(encoding="utf-8", errors="replace")

    wait_until(lambda: workers(ec2)[instance] in ("shutting-down", "terminated"), "the end of an idle node", WAIT_S)
    assert list(workers(ec2)) == [instance]
