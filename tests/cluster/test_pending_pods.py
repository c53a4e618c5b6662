"""Pods that Kubernetes does not start: the reason, and what to change, in `lexray status` and `lexray doctor`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fake_programs import ADashboard, Programs, on_path

from lexray.cluster.provisioned.kubernetes import pending_lines
from lexray.storage.store import Store

NOW = datetime(2026, 5, 1, 12, 30, tzinfo=UTC)
NO_GPU = "0/5 nodes are available: 5 Insufficient nvidia.com/gpu.\n preemption: 0/5 nodes are available."


def pod(name: str, group: str = "gpu", *, minute: int = 20, **status: Any) -> dict[str, Any]:
    labels = {"ray.io/cluster": "lab", "ray.io/group": group}
    metadata = {"name": name, "labels": labels, "creationTimestamp": f"2026-05-01T12:{minute:02}:00Z"}
    return {"metadata": metadata, "status": {"phase": "Pending", **status}}


def unscheduled(message: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"conditions": [condition]}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    scheduled = {"type": "PodScheduled", "status": "True"}
    state = {"waiting": {"reason": reason, "message": message}}
    return {"conditions": [scheduled], "containerStatuses": [{"state": state}]}


def test_pods_of_a_pool_with_one_reason_are_one_line() -> None:
    pods = [pod("a", **unscheduled(NO_GPU)), pod("b", minute=25, **unscheduled(NO_GPU))]
    (line,) = pending_lines(pods, [], NOW)
    assert line.startswith("pool gpu: 2 pod(s) pending for up to 10 min: Unschedulable: 0/5 nodes are available: 5 Ins")
    assert "\n" not in line
    assert line.endswith("device plugin shows their GPUs")


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (unscheduled("2 node(s) had untolerated taint {team: x}"), ["untolerated taint {team: x}", "`tolerations`"]),
        (unscheduled("5 node(s) didn't match Pod's node affinity/selector."), ["`node_selector`"]),
        (unscheduled("1 Insufficient cpu, 4 Insufficient memory."), ["`cpus`", "`memory_gib`"]),
        (waiting("ImagePullBackOff", 'Back-off pulling image "x:1"'), ['"x:1"', "`image_pull_secrets`"]),
        (waiting("CreateContainerConfigError", 'secret "s" not found'), ['secret "s" not found', "make the secret"]),
    ],
)
def test_what_to_change_stands_behind_the_words_of_kubernetes(status: dict[str, Any], parts: list[str]) -> None:
    (line,) = pending_lines([pod("a", **status)], [], NOW)
    assert [part for part in parts if part not in line] == []


def test_the_head_is_named_a_pod_that_starts_is_not_and_the_node_autoscaler_is_heard() -> None:
    pods = [
        pod("head", "headgroup", **unscheduled("5 Insufficient memory.")),
        pod("new", **waiting("ContainerCreating")),
        pod("unseen"),
    ]
    events = [{"involvedObject": {"name": "head"}, "message": "pod didn't trigger scale-up: 1 max size reached"}]
    (line,) = pending_lines(pods, events, NOW)
    assert line.startswith("head: 1 pod(s) pending")
    assert "the node autoscaler adds no node (pod didn't trigger scale-up: 1 max size reached)" in line


@pytest.fixture
def dashboard() -> Iterator[ADashboard]:
    made = ADashboard()
    is_there = ("_ray_pkg_", "/logs")
    made.fallback = lambda path: (200, "") if any(part in path for part in is_there) else (404, "")
    made.routes["/api/jobs/"] = lambda: (200, "[]")
    yield made
    made.close()


@pytest.fixture
def cluster(tmp_path: Path, dashboard: ADashboard, monkeypatch: pytest.MonkeyPatch) -> tuple[Programs, Path]:
    """Stand-in for kubectl, and the description of a cluster that it reaches."""
    programs = Programs(tmp_path, dashboard.port)
    monkeypatch.setenv("PATH", on_path(programs))
    access = {"kind": "kubectl", "namespace": "lab", "service": "lab-head-svc"}
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps({"schema": 1, "name": "lab", "provider": "kubernetes", "access": access}))
    return programs, file


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster has none; the Ray of this test session has one."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_status_and_doctor_tell_why_pods_wait(lexray, cluster, tmp_path: Path) -> None:
    programs, file = cluster
    Store.at(str(tmp_path / "out")).write("sweep.yaml", b"name: widths\n")
    items = json.dumps({"items": [pod("a", **unscheduled(NO_GPU))]})
    programs.answer({"pods": (0, items, ""), "events": (0, '{"items": []}', "")})
    code, out, err = lexray("status", tmp_path / "out", "--cluster", file)
    assert code == 0, err
    assert "pods      pool gpu: 1 pod(s) pending for up to " in out
    _, out, _ = lexray("status", tmp_path / "out", "--cluster", file, "--json")
    (line,) = json.loads(out)["pending_pods"]
    assert "Insufficient nvidia.com/gpu" in line
    _, out, _ = lexray("doctor", "--cluster", file, "--json")
    (check,) = [check for check in json.loads(out)["checks"] if check["name"] == "pods"]
    assert (check["status"], check["found"][:9]) == ("warn", "pool gpu:")


def test_pods_that_cannot_be_asked_for_are_said_and_hinder_nothing(lexray, cluster, tmp_path: Path) -> None:
    programs, file = cluster
    Store.at(str(tmp_path / "out")).write("sweep.yaml", b"name: widths\n")
    programs.answer({"pods": (1, "", "Error from server (Forbidden): pods is forbidden\n")})
    code, out, err = lexray("status", tmp_path / "out", "--cluster", file)
    assert code == 0, err
    assert "pods      unknown: kubectl" in out
    assert "pods is forbidden" in out
    _, out, _ = lexray("doctor", "--cluster", file, "--json")
    (check,) = [check for check in json.loads(out)["checks"] if check["name"] == "pods"]
    assert (check["status"], "pods is forbidden" in check["found"]) == ("skipped", True)
    programs.answer({"pods": (0, '{"items": []}', "")})
    _, out, _ = lexray("status", tmp_path / "out", "--cluster", file)
    assert "pods " not in out
