"""A sweep over S3 on a head with a token: sent, followed from another process, stopped, resumed, its head killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from sweeps import sweep_content, write_dataset, write_sweep

from benchmarks.raylets import Raylets
from lexray.cluster.follow.sweep_status import sweep_status
from lexray.cluster.provisioned.http import Dashboard
from lexray.cluster.provisioned.tokens import Secret
from lexray.storage.store import Store
from lexray.tuning.sweep_folder import SweepFolder

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]

BUCKET = "submitted-sweeps"
OUTPUT = f"s3://{BUCKET}/runs/widths"
SHORT, LONG = 128 * 100, 128 * 12_000
WAIT_S = 150.0
RAYS_OWN = "AutoscalingCoordinator"
"""Ray Train makes one for the whole cluster, which holds nothing."""


class Client:
    """A laptop: the command line in processes of its own."""

    def __init__(self, folder: Path, head: Raylets) -> None:
        self.folder, self.head = folder, head

    @property
    def environment(self) -> dict[str, str]:
        """Without the token of the tests' own Ray."""
        return {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}

    @property
    def cluster(self) -> tuple[str, ...]:
        return self.head.target

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "lexray", *words]

    def run(self, *words: str) -> tuple[int, str, str]:
        done = subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, timeout=300)
        assert self.head.token not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def document(self, *words: str) -> Any:
        code, out, err = self.run(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def followed(self, *words: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(self.command(*words), env=self.environment, text=True, **pipes)


def until(condition: Callable[[], Any], what: str) -> Any:
    began = time.monotonic()
    while time.monotonic() - began < WAIT_S:
        if found := condition():
            return found
        time.sleep(1)
    log = Store.at(OUTPUT).read("log.txt").decode() if Store.at(OUTPUT).exists("log.txt") else "no log"
    raise AssertionError(f"not in {WAIT_S:.0f} s: {what}\n{log}")


@pytest.fixture
def head(sweep: str, tmp_path: Path) -> Iterator[list[Raylets]]:
    """After the sweep: its nodes find S3 where we do."""
    heads = [new_head(tmp_path)]
    yield heads
    for one in heads:
        one.close()
    assert [pid for one in heads for pid in one.pids()] == []


def new_head(folder: Path) -> Raylets:
    """One that trains itself."""
    return Raylets(folder, head_cpus=3, object_store_bytes=200_000_000)


@pytest.fixture
def sweep(tmp_path: Path, s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """One short trial and one long one; the file on this machine, everything else in S3."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    boto3.client("s3").create_bucket(Bucket=BUCKET)
    data = Path(write_dataset(tmp_path / "data"))
    target = Store.at(f"s3://{BUCKET}/data")
    for file in (path for path in data.rglob("*") if path.is_file()):
        target.write(str(file.relative_to(data)), file.read_bytes())
    content = sweep_content(
        target.url,
        OUTPUT,
        name="widths",
        training={"rows": LONG, "lr": 0.003},
        axes={"architecture": ["topk"], "width": [64], "target_l0": [2, 4]},
        rules=[{"when": {"target_l0": 2}, "set": {"rows": SHORT}}],
        every={"log": 20, "evaluate": 3000, "checkpoint": 200},
        wandb={"mode": "disabled"},
    )
    return write_sweep(tmp_path / "sweep.yaml", content)


def test_a_sweep_outlives_its_submitter_a_stop_and_its_head(head, sweep, tmp_path):
    head[0].await_nodes()
    client = Client(tmp_path, head[0])

    def steps() -> dict[str, tuple[str, int]]:
        if not Store.at(OUTPUT).exists("sweep.yaml"):
            return {}
        trials = sweep_status(SweepFolder.existing(OUTPUT), time.time()).trials
        return {trial.name: (trial.status, trial.step) for trial in trials}

    refused_without_the_token(client, sweep)
    code, out, err = client.run("submit", sweep, *client.cluster)
    assert code == 0, err
    job = out.splitlines()[-1]
    assert job.startswith("lexray-widths-")
    assert "2 to do, 0 reused" in out
    follower = client.followed("logs", job, *client.cluster, "-f")
    code, out, err = client.run("submit", sweep, *client.cluster)
    assert (code, out.strip()) == (0, job)
    assert "runs already" in err

    until(lambda: steps().get("topk-w64-l2", ("", 0))[0] == "done" and steps()["topk-w64-l4"][1] > 0, "a trial done")
    first = dictionary_of("topk-w64-l2")
    assert any(line.startswith("object ") for line in left_on(head[0])), "windows, while it trains"
    began = time.monotonic()
    code, out, err = client.run("stop", job, *client.cluster, "--json")
    assert code == 0, err
    assert (json.loads(out)["state"], json.loads(out)["job"]) == ("ended", ""), "it ended by itself"
    said, complaint = follower.communicate(timeout=120)
    assert follower.returncode == 0, complaint
    assert "sweep widths: 2 trials" in said
    until(lambda: left_on(head[0]) == [], "actors, placement groups and objects gone")
    print(f"stopped, and everything free, after {time.monotonic() - began:.0f} s")
    assert steps()["topk-w64-l4"][0] == "stopped: by hand"
    stopped_at = steps()["topk-w64-l4"][1]

    resumed = client.document("resume", OUTPUT, *client.cluster)
    assert resumed["job"] == f"{job}-2"
    until(lambda: steps()["topk-w64-l4"][0] == "running" and steps()["topk-w64-l4"][1] > stopped_at, "it goes on")
    follower = client.followed("submit", sweep, *client.cluster, "-f")
    until(lambda: "runs already" in (follower.stderr.readline() if follower.stderr else ""), "it follows")
    head[0].close()
    _, complaint = follower.communicate(timeout=120)
    assert follower.returncode == 1
    assert f"lexray resume {OUTPUT}" in complaint.splitlines()[-1]
    assert "Traceback" not in complaint

    head.append(new_head(tmp_path))
    head[1].await_nodes()
    client.head = head[1]
    began = time.monotonic()
    code, out, err = client.run("resume", OUTPUT, *client.cluster, "--wait")
    assert code == 0, err
    print(f"a new head finished it in {time.monotonic() - began:.0f} s")
    assert {name: status for name, (status, _) in steps().items()} == {"topk-w64-l2": "done", "topk-w64-l4": "done"}
    assert dictionary_of("topk-w64-l2") == first, "what was finished is not trained again"
    document = client.document("status", OUTPUT)
    assert (document["state"], document["steps_done"]) == ("ended", document["steps"])
    assert document["driver"]["job"] == job, "the first job of this head"
    assert [found["id"] for found in client.document("list", *client.cluster)] == [job]
    assert [found["counts"] for found in client.document("list", f"s3://{BUCKET}/runs")] == [{"done": 2}]
    code, out, err = client.run("resume", OUTPUT, *client.cluster)
    assert code == 0
    assert "every trial is finished, nothing to send" in err
    assert "2 trials, 1 finished before" in logs_of(client)


def refused_without_the_token(client: Client, sweep: str) -> None:
    (client.folder / "wrong").write_text("0" * 32)
    began = time.monotonic()
    for words, line in (((), "wants a token"), (("--token-file", str(client.folder / "wrong")), "refuses this token")):
        code, out, err = client.run("submit", sweep, "--address", client.head.dashboard, *words)
        assert (code, out) == (2, "")
        assert line in err
        assert err.count("\n") == 1
    print(f"two refusals took {time.monotonic() - began:.0f} s, the start of Python in them")
    local = write_sweep(client.folder / "local.yaml", {**content_of(sweep), "output": "runs/here"})
    code, _, err = client.run("submit", local, *client.cluster)
    assert code == 2
    assert "output: runs/here" in err


def content_of(file: str) -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = yaml.safe_load(Path(file).read_text())
    return content


def dictionary_of(name: str) -> str:
    """When it was written."""
    found = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="runs/widths/trials/")["Contents"]
    (one,) = [entry for entry in found if name in entry["Key"] and entry["Key"].endswith("dictionary.safetensors")]
    return str(one["LastModified"])


def left_on(head: Raylets) -> list[str]:
    """Actors and placement groups that hold something, and objects that somebody still has a hand on."""
    dashboard = Dashboard(url=head.dashboard, what="head", token=Secret(head.token))

    def listed(kind: str) -> list[dict[str, Any]]:
        answer = dashboard.get(f"/api/v0/{kind}?detail=1&limit=1000")
        return list(answer["data"]["result"]["result"])

    found = [f"object {one['object_id']} of {one['object_size']} bytes" for one in listed("objects")]
    for kind, gone in (("actors", "DEAD"), ("placement_groups", "REMOVED")):
        found += [f"{kind} {one.get('name') or one.get('class_name')}" for one in listed(kind) if one["state"] != gone]
    return [one for one in found if one != f"actors {RAYS_OWN}"]


def logs_of(client: Client) -> str:
    code, out, err = client.run("logs", OUTPUT)
    assert code == 0, err
    return out
