"""A head that nobody uses ends its watch, and the script around it stops the head."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_programs import ADashboard
from hcl_files import INFRA

from lexray.cluster.node.idle_head import POLL_S, await_idle, is_used

HEAD = {"state": "ALIVE", "is_head_node": True}


class Head(ADashboard):
    def __init__(self) -> None:
        super().__init__(token="t")
        self.jobs: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = [HEAD]
        self.routes["/api/jobs/"] = lambda: (200, json.dumps(self.jobs))
        self.routes["/api/v0/nodes?detail=1&limit=10000"] = lambda: (
            200, json.dumps({"data": {"result": {"result": self.nodes}}})
        )  # fmt: skip


@pytest.fixture
def head() -> Iterator[Head]:
    made = Head()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("jobs", "nodes", "used"),
    [
        ([], [HEAD], False),
        ([{"status": "SUCCEEDED"}, {"status": "FAILED"}], [HEAD], False),
        ([{"status": "PENDING", "submission_id": "other"}], [HEAD], True),
        ([{"status": "RUNNING", "type": "DRIVER"}], [HEAD], True),
        ([], [HEAD, {"state": "ALIVE", "is_head_node": False}], True),
        ([], [HEAD, {"state": "DEAD", "is_head_node": False}], False),
    ],
)
def test_jobs_and_nodes_use_a_cluster(head, jobs, nodes, used, monkeypatch):
    head.jobs, head.nodes = jobs, nodes
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert is_used(head.url) is used


def test_a_head_that_does_not_answer_or_refuses_the_token_is_not_idle(head, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    for url in ("http://127.0.0.1:9", head.url):
        with pytest.raises(OSError, match=r"refused|401"):
            is_used(url)


def test_use_starts_the_clock_anew():
    now_s, polls = 0.0, [False, False, True, False, False, False]

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    await_idle(lambda: polls.pop(0), 3 * POLL_S, lambda: now_s, sleep)
    assert polls == []
    assert now_s == 6 * POLL_S


def test_the_script_stops_the_head_once_the_watch_ends_well(tmp_path: Path):
    """As rendered: `docker` fails once, as while Ray restarts."""
    template = (INFRA / "modules/aws/ray-ec2/templates/idle.sh.tftpl").read_text(encoding="utf-8")
    script = (
        template.split("<<'EOF'\n")[1].split("EOF\n")[0].replace("${minutes}", "45").replace("${group}", "lexray-head")
    )
    for name, text in {
        "docker": 'echo "docker $*" >> calls; [ "$(grep -c docker calls)" -gt 1 ]',
        "aws": 'echo "aws $*" >> calls',
        "sleep": "true",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, check=True, timeout=30)
    watched = "docker exec ray python -m lexray.cluster.node.idle_head 45"
    stopped = "aws autoscaling set-desired-capacity --auto-scaling-group-name lexray-head --desired-capacity 0"
    assert (tmp_path / "calls").read_text().splitlines() == [watched, watched, stopped]
