"""A sweep on nodes like those of a public image: their environment has Ray, and neither lexray, torch nor DeepSpeed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_environment import bare_environment
from sweeps import sweep_content, write_dataset, write_sweep

from benchmarks.raylets import Raylets
from lexray.storage.store import Store
from lexray.tuning.results.frontier import read_frontier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_environment(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def head(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Raylets]:
    if wheels := os.environ.get("PIP_FIND_LINKS"):
        monkeypatch.setenv("UV_FIND_LINKS", wheels)  # a folder with a build of torch for CPUs
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)  # no process of a node starts where lexray's checkout lies
    made = Raylets(tmp_path, head_cpus=2, object_store_bytes=200_000_000, programs=programs)
    yield made
    made.close()


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=1200, check=False)


def test_a_sweep_trains_where_only_ray_is_installed(head: Raylets, tmp_path: Path) -> None:
    head.await_nodes()
    axes = {"architecture": ["topk"], "width": [64], "target_l0": [4]}
    content = sweep_content(write_dataset(tmp_path / "data"), str(tmp_path / "out"), axes=axes)
    file = write_sweep(tmp_path / "sweep.yaml", {**content, "wandb": {"mode": "disabled"}})
    description = {
        "schema": 1, "name": "bare", "provider": "ray", "python_environment": "uv",
        "access": {"kind": "direct", "address": head.dashboard},
        "token": {"kind": "file", "path": str(head.token_file)},
    }  # fmt: skip
    cluster = tmp_path / "cluster.json"
    cluster.write_text(json.dumps(description))
    lexray = [sys.executable, "-m", "lexray"]
    done = run(*lexray, "submit", file, "--cluster", str(cluster), "--trust", "-f")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(read_frontier(Store.at(str(tmp_path / "out"))).status) == ["done"]
    checked = run(*lexray, "doctor", "--cluster", str(cluster), "--min-free-gib", "0", "--json")
    (versions,) = [check for check in json.loads(checked.stdout)["checks"] if check["name"] == "versions"]
    assert versions["status"] == "ok", versions
