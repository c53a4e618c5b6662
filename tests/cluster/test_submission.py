"""What is refused before anything is sent, what is planned, and how the same sweep is found again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fake_programs import ADashboard
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.cluster.jobs import job_client
from lexray.cluster.jobs.submit import all_are_here, gpu_memory_gib, machines_of, scratch_warning, sweep_of
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.driver_record import DriverRecord, write_driver
from lexray.tuning.placement.nodes import HEAD

HERE = {
    "node_ip": "127.0.0.1",
    "state": "ALIVE",
    "resources_total": {"CPU": 4.0, "memory": 8e9, "object_store_memory": 2e9},
}
ELSEWHERE = {**HERE, "node_ip": "192.0.2.77"}  # of a range that nobody has
DEAD = {**ELSEWHERE, "state": "DEAD"}


class Server(ADashboard):
    """A job server as far as submitting needs one; the real one runs in the slow tests."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs: list[dict[str, Any]] = []
        self.refusals: list[tuple[int, str]] = []
        self.nodes = [HERE, DEAD]
        self.fallback = lambda path: (200, "") if path.startswith("/api/packages/gcs/_ray_pkg_") else (404, "")
        self.routes |= {
            "/api/v0/nodes?detail=1&limit=10000": lambda: (
                200,
                json.dumps({"data": {"result": {"result": self.nodes}}}),
            ),
            "/api/jobs/": self._jobs,
        }

    def _jobs(self) -> tuple[int, str]:
        if self.seen[-1][0] == "GET":
            return 200, json.dumps(self.jobs)
        return self.refusals.pop() if self.refusals else (200, json.dumps({"submission_id": "x"}))

    @property
    def sent(self) -> list[str]:
        return [path for method, path, _ in self.seen if method != "GET"]


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data") / "data")


@pytest.fixture
def sweep_file(data, tmp_path):
    def write(**changes: Any) -> str:
        return write_sweep(tmp_path / "sweep.yaml", {**sweep_content(data, str(tmp_path / "out")), **changes})

    return write


@pytest.fixture
def sent(lexray, server):
    """Submits; the document."""

    def run(file: str, *options: str) -> dict[str, Any]:
        code, out, err = lexray("submit", file, "--address", server.url, "--json", *options)
        assert code == 0, err
        document: dict[str, Any] = json.loads(out)
        return document

    return run


def test_a_sweep_is_planned_for_the_clusters_nodes_and_sent(sent, sweep_file, server, tmp_path):
    document = sent(sweep_file())
    assert document["job"].startswith("lexray-small-")
    assert document["plan"]["nodes"] == [{**document["plan"]["nodes"][0], "cpus": 4.0, "memory_bytes": 8e9}]
    assert server.sent == ["/api/jobs/"]
    assert not (tmp_path / "out").exists(), "the job writes there, not we"


def test_a_sweep_that_runs_is_found_and_one_that_ended_gets_another_attempt(sent, sweep_file, server, tmp_path):
    first = sent(sweep_file())["job"]
    job = {"submission_id": first, "status": "RUNNING", "metadata": {}, "start_time": 1}
    server.jobs = [job]
    document = sent(sweep_file())
    assert (document["job"], document["is_new"]) == (first, False)
    server.jobs = [{**job, "status": "FAILED"}, {**job, "submission_id": f"{first}-2", "status": "SUCCEEDED"}]
    document = sent(sweep_file())
    assert (document["job"], document["is_new"]) == (f"{first}-3", True)
    assert server.sent == ["/api/jobs/"] * 2


def test_a_head_that_is_busy_is_asked_again_and_one_that_refuses_is_not(sent, lexray, sweep_file, server, monkeypatch):
    monkeypatch.setattr("lexray.cluster.jobs.submit.BUSY_PAUSES_S", (0.0, 0.0))
    server.refusals = [(500, "No available agent to submit job, please try again later.")] * 2
    assert sent(sweep_file())["is_new"]
    assert len(server.sent) == 3
    server.refusals = [(400, "ValueError: no")]
    code, _, err = lexray("submit", sweep_file(), "--address", server.url)
    assert code == 1
    assert err.endswith("refused (HTTP 400): ValueError: no\n")
    assert len(server.sent) == 4


def test_a_dataset_that_only_the_cluster_can_reach_is_planned_by_the_job(sent, sweep_file):
    storage = {"endpoint_url": "http://127.0.0.1:1", "retry_budget_s": 0}
    document = sent(sweep_file(storage=storage, data={"url": "s3://far/data", "site": "site"}, output="s3://far/out"))
    assert document["job"]
    assert document["plan"] is None
    assert "dataset: cannot read s3://far/data" in document["unplanned"]


def test_folders_are_refused_unless_every_node_is_this_machine_and_relative_ones_always(lexray, sweep_file, server):
    relative = sweep_file(output="runs/here")
    code, _, err = lexray("submit", relative, "--address", server.url)
    assert code == 2
    assert "output: runs/here is relative, and the job runs elsewhere; give /" in err
    server.nodes = [HERE, ELSEWHERE]
    code, _, err = lexray("submit", sweep_file(), "--address", server.url)
    assert code == 2
    assert err.startswith("error output: ")
    assert "which the 2 node(s) of" in err
    assert server.sent == []


def test_a_shared_folder_of_the_description_is_no_folder_of_this_machine(lexray, sweep_file, server, tmp_path, data):
    server.nodes = [ELSEWHERE]
    description = {
        "schema": 1, "name": "lab", "provider": "ray", "access": {"kind": "direct", "address": server.url},
        "runs_url": str(tmp_path), "data_url": str(Path(data).parent),
    }  # fmt: skip
    (tmp_path / "cluster.json").write_text(json.dumps(description))
    code, out, err = lexray("submit", sweep_file(), "--cluster", tmp_path / "cluster.json", "--json", "--trust")
    assert code == 0, err
    assert json.loads(out)["job"]


@pytest.mark.parametrize(
    ("output", "days", "part"),
    [
        ("s3://b/scratch/x", 14, "is deleted after 14 days, checkpoints and dictionaries too; use a folder under s3://b/runs"),
        ("s3://b/scratch", None, "is deleted by its bucket's own rules"),
        ("s3://b/scratchy/x", 14, ""),
        ("s3://b/runs/x", 14, ""),
    ],
)  # fmt: skip
def test_an_output_that_the_bucket_will_delete_is_warned_of(output, days, part):
    described = {
        "schema": 1,
        "name": "lab",
        "provider": "aws-ec2",
        "access": {"kind": "direct", "address": "http://h:1"},
    }
    urls = {"runs_url": "s3://b/runs", "scratch_url": "s3://b/scratch", "scratch_days": days}
    warning = scratch_warning(output, ClusterDescription.model_validate(described | urls))
    assert (part in warning) if part else warning == ""
    assert scratch_warning(output, None) == ""


def test_what_the_cluster_has_no_room_for_is_refused_before_anything_is_sent(lexray, sweep_file, server):
    file = sweep_file(resources={"workers": 9, "cpus_per_worker": 1})
    code, _, err = lexray("submit", file, "--address", server.url)
    assert code == 2
    assert "wants 9 workers of 1 CPU" in err
    assert server.sent == []


def test_a_sweep_that_is_driven_elsewhere_is_not_sent(lexray, sweep_file, server, tmp_path):
    record = DriverRecord(claim="c", machine="0123456789abcdef", cluster="other", started_s=0, seen_s=time.time())
    write_driver(Store.at(str(tmp_path / "out")), record)
    code, _, err = lexray("submit", sweep_file(), "--address", server.url)
    assert code == 2
    assert "is being run by machine 01234567, cluster other" in err
    assert server.sent == []


def test_resume_takes_the_file_from_the_folder_and_refuses_a_folder_that_was_moved(
    lexray, sweep_file, server, tmp_path
):
    text = Path(sweep_file()).read_text()
    Store.at(str(tmp_path / "out")).write("sweep.yaml", text.encode())
    code, out, err = lexray("resume", tmp_path / "out", "--address", server.url, "--json")
    assert code == 0, err
    assert json.loads(out)["job"].startswith("lexray-small-")
    Store.at(str(tmp_path / "copy")).write("sweep.yaml", text.encode())
    code, _, err = lexray("resume", tmp_path / "copy", "--address", server.url)
    assert code == 2
    assert "this one was copied or moved" in err
    code, _, err = lexray("resume", tmp_path / "nothing", "--address", server.url)
    assert code == 2
    assert "no sweep there" in err


def test_a_head_that_does_not_know_itself_yet_is_given_time(sent, sweep_file, server, monkeypatch):
    monkeypatch.setattr(job_client, "LOOK_EVERY_S", 0.01)
    answers = iter([[], [DEAD]])
    whole = server.routes["/api/v0/nodes?detail=1&limit=10000"]

    def soon() -> tuple[int, str]:
        nodes = next(answers, None)
        return whole() if nodes is None else (200, json.dumps({"data": {"result": {"result": nodes}}}))

    server.routes["/api/v0/nodes?detail=1&limit=10000"] = soon
    document = sent(sweep_file())
    assert [node["cpus"] for node in document["plan"]["nodes"]] == [4.0]


def test_pools_count_at_their_largest():
    pools = [
        {"name": "gpu", "cpus": 8, "memory_gib": 100, "gpus": 4, "gpu_memory_gib": 24, "max_nodes": 2},
        {"name": "big", "cpus": 9, "memory_gib": 10, "gpus": 8, "gpu_memory_gib": 80, "max_nodes": 1},
    ]
    access = {"kind": "direct", "address": "http://h"}
    about = ClusterDescription.model_validate(
        {"schema": 1, "name": "lab", "provider": "ray", "access": access, "pools": pools}
    )
    machines = machines_of(about, [HERE])
    assert [(node.cpus, node.gpus) for node in machines.nodes] == [(8, 4), (8, 4), (9, 8)]
    assert (machines.nodes[0].memory_bytes, machines.object_store_bytes[0]) == (65 * 2**30, 30 * 2**30)
    assert machines.trials_on_head is None  # nobody said which node the head is
    head = HERE | {"resources_total": {"CPU": 1.0, "memory": float(2**30), HEAD: 1.0}}
    assert machines_of(about, [HERE, head]).trials_on_head == machines_of(None, [head]).trials_on_head == 4
    assert gpu_memory_gib(about) == 24
    assert gpu_memory_gib(None) is None


def test_a_node_is_here_if_its_address_is_ours():
    assert all_are_here([HERE])
    assert not all_are_here([HERE, ELSEWHERE])
    assert not all_are_here([])


def test_a_file_in_a_folder_that_is_broken_is_named():
    with pytest.raises(UserError, match=r"s3://b/sweep.yaml: nmae: unknown key"):
        sweep_of("nmae: x\n", "s3://b/sweep.yaml")
