"""Requests to a dashboard and what is sent with a job: bounded, told in one line, found again under one id."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import shlex
import socket
import zipfile
from pathlib import Path

import pytest
from fake_programs import ADashboard
from hypothesis import given
from hypothesis import strategies as st

from lexray.cluster.jobs.job_client import (
    LONGEST_PAUSE_S,
    PAUSE_S,
    JobClient,
    attempt_of,
    base_id,
    follow_job,
    next_id,
    pause_s,
)
from lexray.cluster.jobs.submit import entrypoint
from lexray.cluster.provisioned import http
from lexray.cluster.provisioned.description import ClusterDescription, Pool
from lexray.cluster.provisioned.errors import ClusterLostError, NotFoundError, RefusedError
from lexray.cluster.provisioned.http import Dashboard
from lexray.cluster.provisioned.pools import pools_of, pools_option, startable
from lexray.cluster.provisioned.tokens import Secret
from lexray.cluster.ray_backend.package import MAX_BYTES, code_package, package
from lexray.storage.errors import UserError


@pytest.fixture
def server():
    made = ADashboard()
    yield made
    made.close()


class Clock:
    """Seconds that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def dashboard(server) -> Dashboard:
    clock = Clock()
    return Dashboard(url=server.url, what="cluster sae", clock=clock, sleep=clock.sleep)


def test_errors_of_the_server_are_one_line_of_what_it_says_last(server, dashboard):
    server.routes["/api/jobs/"] = lambda: (500, "Traceback (most recent call last):\n  File\nValueError: no room\n")
    with pytest.raises(RefusedError, match=r"^cluster sae refused \(HTTP 500\): ValueError: no room$"):
        dashboard.get("/api/jobs/")
    with pytest.raises(NotFoundError):
        dashboard.get("/api/jobs/none")


def test_an_answer_without_end_or_without_a_bottom_is_refused(server, dashboard, monkeypatch):
    server.routes["/api/jobs/"] = lambda: (200, "[" * 100_000)
    assert dashboard.ask("GET", "/api/jobs/") is None
    server.routes["/api/version"] = lambda: (200, "[" * 100_000)
    with pytest.raises(UserError, match="no dashboard of Ray"):
        dashboard.check()
    monkeypatch.setattr(http, "MAX_ANSWER_BYTES", 99_999)
    with pytest.raises(UserError, match="an answer has more than 99,999 bytes"):
        dashboard.ask("GET", "/api/jobs/")


def test_a_question_is_asked_again_and_an_order_is_given_once(server, dashboard):
    answers = iter([(500, "busy"), (503, "busy"), (200, "[1]")])
    server.routes["/api/jobs/"] = lambda: next(answers)
    assert dashboard.get("/api/jobs/") == [1]
    server.routes["/api/order"] = lambda: (500, "busy")
    with pytest.raises(RefusedError):
        dashboard.ask("POST", "/api/order")
    assert [path for _, path, _ in server.seen].count("/api/order") == 1


def test_a_head_that_hangs_is_given_up_in_bounded_time():
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        renewed = []
        clock = Clock()
        hanging = Dashboard(
            url=url, what="cluster sae", timeout_s=0.1, patience_s=2, clock=clock, sleep=clock.sleep,
            renew=lambda: renewed.append(1),
        )  # fmt: skip
        with pytest.raises(UserError, match="cluster sae: nothing answers there"):
            hanging.check()
        with pytest.raises(ClusterLostError, match="does not answer any more"):
            hanging.get("/api/jobs/")
        assert len(renewed) == 2


def test_no_proxy_stands_between_us_and_a_tunnel(server, dashboard, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert dashboard.check()["ray_version"] == "2.60.0"


def test_the_token_goes_to_the_server_as_a_header_alone(server):
    Dashboard(url=server.url, what="c", token=Secret("s3cret")).check()
    ((_, path, headers),) = server.seen
    assert headers["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in path


@given(st.text(min_size=1), st.text(), st.integers(1, 30))
def test_attempts_at_one_sweep_are_found_again_and_never_repeat_an_id(name, url, count):
    base = base_id(name, url)
    ids: list[str] = []
    for _ in range(count):
        ids.append(next_id(base, [*ids, "lexray-other-00000000", f"{base}-x", f"{base}-0"]))
    assert [attempt_of(job, base) for job in ids] == list(range(1, count + 1))
    assert len(set(ids)) == count
    assert all(part.isascii() and part.isalnum() for part in base.split("-"))


def test_sweeps_into_other_folders_have_other_ids():
    ids = {base_id(name, url) for name, url in itertools.product(("a b", "c"), ("s3://x", "s3://y"))}
    assert len(ids) == 4
    assert base_id("A  b!", "s3://x").startswith("lexray-a-b-")


def test_the_package_is_the_code_and_the_file_and_equal_for_equal_content():
    made = package("name: x\n")
    assert made.name == package("name: x\n").name
    assert made.name != package("name: y\n").name
    names = zipfile.ZipFile(io.BytesIO(made.content)).namelist()
    assert {
        "sweep.yaml",
        "lexray/__main__.py",
        "lexray/tuning/results/report.html.j2",
        "lexray/storage/store.py",
    } <= set(names)
    assert {name.split("/")[0] for name in names} == {"sweep.yaml", "lexray"}
    assert not any("__pycache__" in name for name in names)
    assert len(made.content) < 2_000_000


def test_only_source_files_of_the_floors_leave_the_machine(tmp_path: Path):
    secrets = (".env", ".aws/credentials", "storage/.env", "storage/.cache/a.py", "tuning/token.txt", "notes/x.py")
    secrets = (*secrets, "storage/key.pem", "storage/__pycache__/x.py", "storage/a.py.bak", "credentials")
    sent = ("__init__.py", "storage/store.py", "tuning/report.html.j2")
    for name in (*secrets, *sent):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "storage" / "link.py").symlink_to(tmp_path / ".env")
    (tmp_path / "tuning" / "folder").symlink_to(tmp_path / "notes")
    (tmp_path / "training").symlink_to(tmp_path / "floor")  # a floor is a link in a checkout
    os.mkfifo(tmp_path / "storage" / "pipe.py")
    made = code_package(tmp_path)
    assert set(zipfile.ZipFile(io.BytesIO(made.content)).namelist()) == {f"lexray/{name}" for name in sent}


def test_a_package_over_the_limit_names_the_largest_files(tmp_path: Path):
    (tmp_path / "tuning").mkdir()
    for number, size in enumerate((MAX_BYTES, 1_000_000, 10)):
        noise = bytes(range(256)) * (size // 256)
        (tmp_path / "tuning" / f"{number}.py").write_bytes(noise if number else _noise(size))
    with pytest.raises(UserError) as refused:
        package("name: x", folder=tmp_path)
    assert "upload: 10.0 MB, at most 10 MB" in str(refused.value)
    assert "lexray/tuning/0.py (10.0 MB), lexray/tuning/1.py (1.0 MB)" in str(refused.value)


def _noise(size: int) -> bytes:
    import random

    return random.Random(0).randbytes(size)


def test_a_cluster_may_be_called_anything():
    command = entrypoint("lexray-x-1", "my cluster; rm -rf /")
    assert command.endswith("--cluster-name 'my cluster; rm -rf /'")


def test_a_job_is_told_of_every_pool_that_may_still_start():
    pools = (Pool(name="a10g", cpus=46, memory_gib=176, gpus=4, max_nodes=2), Pool(name="cpu", cpus=7.5, memory_gib=30,
             max_nodes=1, min_nodes=1, capacity="ON_DEMAND"))  # fmt: skip
    words = shlex.split(entrypoint("lexray-x-1", "lab", pools))
    told = pools_of(words[words.index("--pools") + 1])
    assert [(one.name, one.cpus, one.memory_gib, one.gpus, one.min_nodes, one.max_nodes) for one in told] == [
        ("a10g", 46, 176, 4, 0, 2), ("cpu", 7.5, 30, 0, 1, 1),
    ]  # fmt: skip
    assert (pools_option([]), pools_of("")) == ([], ())


def test_leave_for_insecure_stores_is_passed_on_to_the_job(monkeypatch):
    monkeypatch.setenv("LEXRAY_INSECURE_STORAGE", "1")
    assert shlex.split(entrypoint("lexray-x-1", "lab"))[:4] == ["env", "LEXRAY_INSECURE_STORAGE=1", "python", "-m"]
    monkeypatch.delenv("LEXRAY_INSECURE_STORAGE")
    assert shlex.split(entrypoint("lexray-x-1", "lab"))[:2] == ["python", "-m"]


@pytest.mark.parametrize(
    ("text", "line"), [("[{", "--pools: Invalid JSON"), ('[{"name": "a10g"}]', "--pools: 0.cpus: ")]
)
def test_pools_that_cannot_be_read_are_one_line(text, line):
    with pytest.raises(UserError, match=re.escape(line)):
        pools_of(text)


@pytest.mark.parametrize(("provider", "count"), [("aws-ec2", 1), ("aws-eks", 1), ("kubernetes", 1), ("ray", 0)])
def test_nodes_are_waited_for_where_somebody_starts_them_alone(provider, count):
    pools = [{"name": "gpu", "cpus": 8, "memory_gib": 32, "max_nodes": 2}]
    access = {"kind": "direct", "address": "http://127.0.0.1:8265"}
    content = {"schema": 1, "name": "lab", "provider": provider, "access": access, "pools": pools}
    assert len(startable(ClusterDescription.model_validate(content))) == count


@given(st.integers(0, 10**9))
def test_a_long_log_is_asked_for_less_often(log_bytes):
    assert PAUSE_S <= pause_s(log_bytes) <= LONGEST_PAUSE_S
    assert pause_s(log_bytes) <= pause_s(2 * log_bytes)


def jobs(status: str, message: str = "") -> str:
    return json.dumps({"submission_id": "lexray-x-1", "status": status, "message": message, "metadata": {}})


def test_a_followed_job_says_each_piece_once_and_ends(server, dashboard):
    states = iter(["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"])
    logs = iter(["", "one\n", "one\ntwo\n", "one\ntwo\nthree\n"])
    server.routes["/api/jobs/lexray-x-1"] = lambda: (200, jobs(next(states)))
    server.routes["/api/jobs/lexray-x-1/logs"] = lambda: (200, json.dumps({"logs": next(logs)}))
    said: list[str] = []
    job = follow_job(JobClient(dashboard), "lexray-x-1", said.append, how_to_resume="", sleep=lambda _: None)
    assert (job.status, "".join(said)) == ("SUCCEEDED", "one\ntwo\nthree\n")


def test_a_head_that_dies_or_is_another_one_ends_a_follower_with_how_to_resume(server, dashboard):
    def follow() -> None:
        follow_job(JobClient(dashboard), "lexray-x-1", lambda _: None, how_to_resume="lexray resume U", sleep=die)

    def die(_: float) -> None:
        server.close()

    with pytest.raises(ClusterLostError, match=r"knows job lexray-x-1 no more.*`lexray resume U`"):
        follow()
    server.routes["/api/jobs/lexray-x-1"] = lambda: (200, jobs("RUNNING"))
    server.routes["/api/jobs/lexray-x-1/logs"] = lambda: (200, "{}")
    with pytest.raises(ClusterLostError, match=r"does not answer any more.*`lexray resume U`"):
        follow()
