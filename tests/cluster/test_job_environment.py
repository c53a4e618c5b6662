"""What a job installs on nodes that have Ray alone, and the clusters that it is refused on."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fake_programs import ADashboard
from packaging.requirements import Requirement
from ray.runtime_env import RuntimeEnv
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.cluster.jobs import environment
from lexray.cluster.jobs.environment import job_environment, pins
from lexray.cluster.provisioned.description import SETUP_TIMEOUT_S, ClusterDescription

TOTAL = {"CPU": 4.0, "memory": 8e9, "object_store_memory": 2e9}
NODE = {"node_ip": "127.0.0.1", "state": "ALIVE", "resources_total": TOTAL}


def described(address: str, **changes: Any) -> dict[str, Any]:
    access = {"kind": "direct", "address": address}
    return {"schema": 1, "name": "lab", "provider": "ray", "access": access, "python_environment": "uv", **changes}


def names(requirements: list[str]) -> dict[str, str]:
    return {required.name: str(required.specifier) for required in map(Requirement, requirements)}


def test_pins_are_everything_that_lexray_requires_as_installed_here() -> None:
    found = names(pins())
    assert {"torch", "deepspeed", "s3fs", "wandb", "botocore", "transformers"} <= found.keys()
    assert {"sympy", "aiobotocore", "tokenizers"} <= found.keys(), "what these require"
    assert {"tensorboardx", "aiohttp-cors"} <= found.keys(), "what the extras of Ray require"
    assert not {"ray", "lexray"} & found.keys()
    assert not {"pytest", "moto", "ruff", "datasets"} & found.keys(), "other extras of lexray"
    assert found["torch"] == f"=={version('torch').partition('+')[0]}"
    assert found["pydantic"] == f"=={version('pydantic')}"


def test_a_build_for_this_machine_is_no_requirement_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    built = {"torch": "2.13.0+cu130"}
    monkeypatch.setattr(environment, "version", lambda name: built.get(name) or version(name))
    assert names(pins())["torch"] == "==2.13.0"


def test_ray_takes_the_environment_as_it_is() -> None:
    made = job_environment(ClusterDescription.model_validate(described("http://h:1")), version("ray"))
    taken = RuntimeEnv(**made, working_dir="gcs://_ray_pkg_0.zip")
    assert taken["uv"]["packages"] == pins()
    assert taken["config"]["setup_timeout_seconds"] == SETUP_TIMEOUT_S
    image = ClusterDescription.model_validate(described("http://h:1", python_environment="image"))
    assert job_environment(image, "1.0.0") == job_environment(None, "1.0.0") == {}


class Head(ADashboard):
    """A head as far as submitting needs one."""

    def __init__(self, ray_version: str) -> None:
        super().__init__()
        is_there = ("_ray_pkg_", "/logs")
        self.fallback = lambda path: (200, "") if any(part in path for part in is_there) else (404, "")
        nodes = json.dumps({"data": {"result": {"result": [NODE]}}})
        self.routes |= {
            "/api/version": lambda: (200, json.dumps({"version": "4", "ray_version": ray_version})),
            "/api/v0/nodes?detail=1&limit=10000": lambda: (200, nodes),
            "/api/jobs/": lambda: (200, "[]"),
        }

    def sent(self) -> list[dict[str, Any]]:
        """The runtime environments of all jobs that were submitted."""
        posts = [body for (method, _, _), body in zip(self.seen, self.bodies, strict=True) if method == "POST"]
        return [json.loads(body)["runtime_env"] for body in posts]


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    """Every command that starts code on a cluster, but for the cluster."""
    data = write_dataset(tmp_path / "data")
    file = write_sweep(tmp_path / "sweep.yaml", sweep_content(data, str(tmp_path / "out")))
    return [["submit", file], ["doctor", file]]


@pytest.mark.parametrize("kind", ["uv", "image"])
def test_every_job_brings_its_requirements_where_the_image_has_none(lexray, commands, kind, tmp_path) -> None:
    head, file = Head(version("ray")), tmp_path / "cluster.json"
    file.write_text(json.dumps(described(head.url, python_environment=kind)))
    try:
        for command in commands:
            lexray(*command, "--cluster", file, "--trust")
    finally:
        head.close()
    assert len(head.sent()) == len(commands)
    for sent in head.sent():
        assert sent.pop("working_dir").startswith("gcs://_ray_pkg_")
        assert sent.get("uv", {}).get("packages") == (pins() if kind == "uv" else None)


def test_another_ray_than_ours_is_refused_in_one_line(lexray, commands, tmp_path) -> None:
    head, file = Head("2.50.0"), tmp_path / "cluster.json"
    file.write_text(json.dumps(described(head.url)))
    try:
        for command in commands:
            code, _, err = lexray(*command, "--cluster", file, "--trust")
            assert code == 2
            assert f"cluster lab: its head runs Ray 2.50.0, this machine {version('ray')}" in err
            assert err.count("\n") == 1
    finally:
        head.close()
    assert head.sent() == []
