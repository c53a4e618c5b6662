"""Nodes are lost and join while a sweep runs: it ends with the dictionaries of an undisturbed one.

Several machines in network namespaces of this one; the sweep's driver runs on the head.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import namespaces
import numpy as np
import pytest
from namespaces import GCS_PORT, Machines, wait_until
from safetensors.numpy import load_file
from sweeps import sweep_content, write_dataset, write_sweep

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 3000
LONG = {"training": {"rows": 128 * STEPS, "lr": 0.003}, "wandb": {"mode": "disabled"}}
EVERY = {"log": 10, "evaluate": 500, "checkpoint": 100}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    reason = namespaces.why_not()
    if reason:
        pytest.skip(reason)
    with namespaces.machines(tmp_path_factory.mktemp("machines")) as made:
        made.start_head()
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("lost") / "data")


class Running:
    """A sweep by the command, on the head."""

    def __init__(self, cluster: Machines, place: Path, content: dict[str, Any]) -> None:
        self.out = Path(content["output"])
        file = write_sweep(place / f"{self.out.name}.yaml", content)
        address = f"{cluster.addresses['head']}:{GCS_PORT}"
        self.process = cluster.run("head", [sys.executable, "-m", "cluster", "sweep", file, "--address", address])

    def records(self, name: str) -> list[dict[str, Any]]:
        """Of the trial whose id begins so."""
        files = list(self.out.glob(f"trials/{name}*/metrics.jsonl"))
        return [json.loads(line) for line in files[0].read_text().splitlines()] if files else []

    def step(self, name: str) -> int:
        return max((record["step"] for record in self.records(name)), default=0)

    def wait_for_step(self, name: str, step: int) -> None:
        wait_until(lambda: self.step(name) >= step or self.process.poll() is not None, f"step {step} of {name}", 200)
        assert self.process.poll() is None, "the sweep ended too soon"

    def ended(self) -> dict[str, dict[str, Any]]:
        """Records of its trials by name, once all are done."""
        try:
            assert self.process.wait(400) == 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        records = [json.loads(file.read_text()) for file in self.out.glob("trials/*/trial.json")]
        assert {record["status"] for record in records} == {"done"}, records
        return {record["name"]: record for record in records}

    def weights(self, name: str) -> dict[str, np.ndarray]:
        (file,) = self.out.glob(f"trials/{name}*/dictionary/dictionary.safetensors")
        return load_file(file)


def test_a_killed_and_a_cut_off_node_cost_attempts_and_change_nothing(
    cluster: Machines, data: str, tmp_path: Path
) -> None:
    def content(name: str) -> dict[str, Any]:
        axes = {"architecture": ["topk"], "width": [64], "target_l0": [4, 6]}
        resources = {"workers": 2, "timeout_s": 30}
        return sweep_content(data, str(tmp_path / name), axes=axes, resources=resources, every=EVERY, **LONG)

    for name in ("one", "two"):
        cluster.start_worker(name, cpus=2)
    undisturbed = Running(cluster, tmp_path, content("undisturbed"))
    undisturbed.ended()
    sweep = Running(cluster, tmp_path, content("disturbed"))
    for name in ("topk-w64-l4", "topk-w64-l6"):
        sweep.wait_for_step(name, 200)
    before = {name: sweep.step(name) for name in ("topk-w64-l4", "topk-w64-l6")}
    assert max(before.values()) < STEPS - 500, "both are amid their training"
    cluster.cut("two")
    cluster.kill("one")
    lost = time.monotonic()
    for name in ("three", "four"):
        cluster.start_worker(name, cpus=2)
    for name, step in before.items():
        wait_until(lambda name=name, step=step: sweep.step(name) > step + 100, f"{name} after its node was lost", 200)
        print(f"{name} is further than before {time.monotonic() - lost:.0f} s after its node was lost")
    sweep.ended()
    for name in ("topk-w64-l4", "topk-w64-l6"):
        steps = [record["step"] for record in sweep.records(name)]
        assert steps == sorted(set(steps)), "each logged step once"
        expected, found = undisturbed.weights(name), sweep.weights(name)
        assert all(np.array_equal(expected[tensor], found[tensor]) for tensor in expected), name


def test_a_trial_goes_on_with_what_is_left_and_grows_when_nodes_join(
    cluster: Machines, data: str, tmp_path: Path
) -> None:
    def content(name: str) -> dict[str, Any]:
        axes = {"architecture": ["topk"], "width": [64], "target_l0": [4]}
        resources = {"workers": 4, "timeout_s": 30, "elastic": {"grow_after_s": 1}}
        return sweep_content(data, str(tmp_path / name), axes=axes, resources=resources, every=EVERY, **LONG)

    for name in ("five", "six"):
        cluster.start_worker(name, cpus=2)
    undisturbed = Running(cluster, tmp_path, content("undisturbed"))
    assert undisturbed.ended()["topk-w64-l4"]["workers"] == 4
    sweep = Running(cluster, tmp_path, content("disturbed"))
    sweep.wait_for_step("topk", 200)
    for name in ("three", "four", "six"):  # whatever is there of the nodes of before
        cluster.kill(name)
    trial = lambda: json.loads(next(sweep.out.glob("trials/*/trial.json")).read_text())  # noqa: E731
    wait_until(lambda: trial()["workers"] == 2, "the smaller mesh", 200)
    sweep.wait_for_step("topk", sweep.step("topk") + 100)
    cluster.start_worker("seven", cpus=2)
    wait_until(lambda: trial()["workers"] == 4, "the larger mesh", 200)
    sweep.ended()
    expected, found = undisturbed.weights("topk"), sweep.weights("topk")
    for tensor in expected:
        np.testing.assert_allclose(found[tensor], expected[tensor], atol=1e-2, err_msg=tensor)
