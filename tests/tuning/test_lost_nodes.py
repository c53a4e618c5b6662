"""Nodes are lost and join while a sweep runs: it ends with the dictionaries of an undisturbed one.

Several machines in network namespaces of this one, an S3 server on another; the sweep is submitted from here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import namespaces
import numpy as np
import pytest
from namespaces import DASHBOARD_PORT, Machines, wait_until
from safetensors.numpy import load
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 2000
LONG = {"training": {"rows": 128 * STEPS, "lr": 0.003}, "wandb": {"mode": "disabled"}}
EVERY = {"log": 10, "evaluate": STEPS, "checkpoint": 100}
ENDS = ("another attempt at this trial runs by now", "ActorUnavailableError", "ActorDiedError")
"""Why workers that are cut off from the head end: they find the next attempt's token, or miss an answer of Ray."""
BOTH = ("topk-w64-l4", "topk-w64-l6")


class Cluster:
    """A head without work, workers as they are added, and an S3 server with a dataset."""

    def __init__(self, machines: Machines, place: Path) -> None:
        self.machines = machines
        self.s3 = machines.start_s3()
        self.settings = StorageSettings(endpoint_url=self.s3)
        boto3.client("s3", endpoint_url=self.s3).create_bucket(Bucket="lost")
        local = Path(write_dataset(place / "data"))
        for file in (file for file in local.rglob("*") if file.is_file()):
            self.store("data").write(str(file.relative_to(local)), file.read_bytes())
        head = machines.start_head()
        (place / "token").write_text(machines.token)
        where = ["--address", f"http://{head}:{DASHBOARD_PORT}", "--insecure"]
        self.options = [*where, "--token-file", str(place / "token")]

    def store(self, name: str) -> Store:
        return Store.at(f"s3://lost/{name}", self.settings)

    def content(self, name: str, **changes: Any) -> dict[str, Any]:
        storage = {"endpoint_url": self.s3}
        return sweep_content(
            "s3://lost/data", f"s3://lost/{name}", storage=storage, **{"every": EVERY, **LONG, **changes}
        )


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    reason = namespaces.why_not()
    if reason:
        pytest.skip(reason)
    place = tmp_path_factory.mktemp("machines")
    with namespaces.machines(place) as made:
        yield Cluster(made, place)


class Submitted:
    """A sweep that runs as a job of the cluster, seen through its folder alone."""

    def __init__(self, cluster: Cluster, place: Path, name: str, **changes: Any) -> None:
        self.store = cluster.store(name)
        file = write_sweep(place / f"{name}.yaml", {**cluster.content(name, **changes), "name": name})
        sent = subprocess.run(
            [sys.executable, "-m", "lexray", "submit", file, *cluster.options], capture_output=True, text=True
        )
        assert sent.returncode == 0, sent.stderr

    def trials(self) -> dict[str, dict[str, Any]]:
        """Records by name."""
        folders = self.store.list_folders("trials")
        files = [f"trials/{folder}/trial.json" for folder in folders]
        records = [json.loads(self.store.read(file)) for file in files if self.store.exists(file)]
        return {record["name"]: record for record in records}

    def step(self, name: str) -> int:
        return max(self.steps(name), default=0)

    def steps(self, name: str) -> list[int]:
        trial = self.trials().get(name, {}).get("trial")
        file = f"trials/{trial}/metrics.jsonl"
        text = self.store.read(file).decode() if trial and self.store.exists(file) else ""
        return [json.loads(line)["step"] for line in text.splitlines()]

    def checkpoints(self, name: str) -> list[int]:
        """Steps of those that are whole."""
        store = self.store.at_path(f"trials/{self.trials()[name]['trial']}/checkpoints")
        folders = [folder for folder in store.list_folders("") if store.exists(f"{folder}/manifest.json")]
        return sorted(int(folder.split("-")[1]) for folder in folders)

    def wait_for_step(self, name: str, step: int) -> None:
        wait_until(lambda: self.step(name) >= step, f"step {step} of {name}", 250)

    def ended(self) -> dict[str, dict[str, Any]]:
        """Records of its trials by name, once its driver says that it is over."""
        try:
            wait_until(lambda: self.driver().get("state", "running") != "running", "the end", 500)
        finally:
            print(self.store.read("log.txt").decode() if self.store.exists("log.txt") else "no log")
        trials = self.trials()
        assert {record["status"] for record in trials.values()} == {"done"}, (self.driver(), trials)
        return trials

    def driver(self) -> dict[str, Any]:
        there = self.store.exists("driver.json")
        return dict(json.loads(self.store.read("driver.json"))) if there else {}

    def weights(self, name: str) -> dict[str, np.ndarray]:
        trial = self.trials()[name]["trial"]
        return load(self.store.read(f"trials/{trial}/dictionary/dictionary.safetensors"))


TWO_TRIALS = {
    "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4, 6]},
    "resources": {"workers": 2, "timeout_s": 30},
}


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """Two trials of two workers each, on two nodes of two CPUs."""
    for name in ("one", "two"):
        cluster.machines.start_worker(name, cpus=2)
    sweep = Submitted(cluster, tmp_path_factory.mktemp("undisturbed"), "undisturbed", **TWO_TRIALS)
    sweep.ended()
    return sweep


def test_a_killed_and_a_cut_off_node_cost_attempts_and_change_nothing(
    cluster: Cluster, undisturbed: Submitted, tmp_path: Path
) -> None:
    sweep = Submitted(cluster, tmp_path, "disturbed", **TWO_TRIALS)
    for name in BOTH:
        sweep.wait_for_step(name, 200)
    before = {name: sweep.step(name) for name in BOTH}
    assert max(before.values()) < STEPS - 500, "both are amid their training"
    cluster.machines.cut_from("two", [name for name in cluster.machines.addresses if name not in ("two", "s3")])
    cluster.machines.kill("one")
    lost = time.monotonic()
    for name in ("three", "four"):
        cluster.machines.start_worker(name, cpus=2)
    for name, step in before.items():
        wait_until(lambda name=name, step=step: sweep.step(name) > step + 100, f"{name} after its node was lost", 250)
        print(f"{name} is further than before {time.monotonic() - lost:.0f} s after its node was lost")
    wait_until(lambda: any(end in cluster.machines.said("two") for end in ENDS), "the end of those that were cut off")
    print("those that were cut off:", [end for end in ENDS if end in cluster.machines.said("two")])
    sweep.ended()
    for name in BOTH:
        steps = sweep.steps(name)
        assert steps == list(range(10, STEPS + 1, 10)), "each logged step once, in order"
        expected, found = undisturbed.weights(name), sweep.weights(name)
        assert all(np.array_equal(expected[tensor], found[tensor]) for tensor in expected), name


def test_two_sweeps_share_the_nodes_of_a_cluster_and_both_end(cluster: Cluster, tmp_path: Path) -> None:
    changes = {
        "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4, 6, 8]},
        "resources": {"workers": 2},
        "training": {"rows": 128 * 200, "lr": 0.003},
    }
    hers, his = (Submitted(cluster, tmp_path, name, **changes) for name in ("hers", "his"))
    assert len(hers.ended()) == len(his.ended()) == 3
    assert set(hers.trials()) == set(his.trials())


def test_a_trial_over_two_nodes_goes_on_with_what_is_left_and_grows_when_nodes_join(
    cluster: Cluster, undisturbed: Submitted, tmp_path: Path
) -> None:
    changes = {
        "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4]},
        "resources": {"workers": 4, "timeout_s": 30, "elastic": {"grow_after_s": 1}},
    }
    sweep = Submitted(cluster, tmp_path, "shrunk", **changes)
    sweep.wait_for_step(BOTH[0], 200)
    assert sweep.trials()[BOTH[0]]["workers"] == 4
    cluster.machines.kill("two" if "four" not in cluster.machines.addresses else "four")
    wait_until(lambda: sweep.trials()[BOTH[0]]["workers"] == 2, "the smaller mesh", 250)
    sweep.wait_for_step(BOTH[0], sweep.step(BOTH[0]) + 50)
    cluster.machines.start_worker("five", cpus=2)
    wait_until(lambda: sweep.trials()[BOTH[0]]["workers"] == 4, "the larger mesh", 250)
    sweep.ended()
    expected, found = undisturbed.weights(BOTH[0]), sweep.weights(BOTH[0])
    for tensor in expected:
        np.testing.assert_allclose(found[tensor], expected[tensor], atol=1e-2, err_msg=tensor)


def test_a_drained_node_is_left_with_the_state_saved_and_nothing_is_repeated(
    cluster: Cluster, undisturbed: Submitted, tmp_path: Path
) -> None:
    machines, deadline_s = cluster.machines, 300
    changes = {
        "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4]},
        "resources": {"workers": 2, "timeout_s": 30},
        "every": {**EVERY, "checkpoint": STEPS},
    }
    sweep = Submitted(cluster, tmp_path, "drained", **changes)
    sweep.wait_for_step(BOTH[0], 100)
    (first,) = machines.on_nodes("RayTrainWorker")
    assert machines.on_nodes("WindowServer") == {first: 1}
    assert not machines.on_nodes("PreemptionWatcher"), "nobody would ask it"
    began = time.monotonic()
    machines.drain(first, deadline_s)
    wait_until(lambda: first not in machines.on_nodes("RayTrainWorker"), f"workers that leave {first}", deadline_s)
    left_s = time.monotonic() - began
    wait_until(lambda: bool(machines.on_nodes("RayTrainWorker")), "workers elsewhere")
    saved = sweep.checkpoints(BOTH[0])[-1]
    assert saved < STEPS, "it saved as it left"
    assert sweep.step(BOTH[0]) == saved, "no step after the one that was saved"
    wait_until(
        lambda: machines.on_nodes("WindowServer").get(first) is None, f"the server on {first} to end", deadline_s
    )
    print(f"left {first} at step {saved}, {left_s:.0f} s after the notice")
    (second,) = machines.on_nodes("RayTrainWorker")
    assert second != first
    assert machines.on_nodes("WindowServer") == {second: 1}
    wait_until(lambda: machines.addresses[first] not in machines.alive(), f"{first} to end", deadline_s)
    assert time.monotonic() - began < deadline_s, "a node without work ends before it is taken"
    sweep.ended()
    assert sweep.steps(BOTH[0]) == list(range(10, STEPS + 1, 10)), "each logged step once, in order"
    expected, found = undisturbed.weights(BOTH[0]), sweep.weights(BOTH[0])
    assert all(np.array_equal(expected[tensor], found[tensor]) for tensor in expected)
