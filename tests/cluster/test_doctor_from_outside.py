"""The doctor as somebody far away calls it: machines of their own addresses, only the head's dashboard in reach."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from namespaces import DASHBOARD_PORT, Machines, machines, why_not
from sweeps import sweep_content
from synthetic import write_rows

from lexray.cluster.doctor.remote import document_in
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

ROOT = Path(__file__).parents[2]


def test_the_document_is_found_between_what_else_a_job_says() -> None:
    said = json.dumps({"healthy": True, "checks": []}, indent=1)
    assert document_in(f"a warning\n{{\n}}\n{said}\n{{ not all of it") == {"healthy": True, "checks": []}
    assert document_in("Traceback (most recent call last):\n{\n") is None


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Machines]:
    """A head and two workers, an S3 server beside them."""
    if why_not():
        pytest.skip(why_not())
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with machines(tmp_path, PATH=path, GLOO_SOCKET_IFNAME="eth0") as made:  # all of them are called like this machine
        made.start_head()
        for name in ("w1", "w2"):
            made.start_worker(name, cpus=1)
        yield made


def sweep_on(place: Machines) -> str:
    """A sweep file whose data lies on the machines' own S3 server."""
    settings = StorageSettings(endpoint_url=place.start_s3())
    boto3.client("s3", endpoint_url=settings.endpoint_url, region_name="us-east-1").create_bucket(Bucket="outside")
    write_rows(Store.at("s3://outside/data", settings), sites={"site": 4})
    storage = {"endpoint_url": settings.endpoint_url, "region": "us-east-1"}
    content = sweep_content("s3://outside/data", "s3://outside/out", storage=storage)
    (place.place / "sweep.yaml").write_text(yaml.safe_dump(content))
    return str(place.place / "sweep.yaml")


def doctor(place: Machines, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of the command, called on the machine of the tests."""
    (place.place / "token").write_text(place.token)
    address = f"http://{place.addresses['head']}:{DASHBOARD_PORT}"
    where = ["--address", address, "--token-file", str(place.place / "token"), "--insecure"]
    command = [sys.executable, "-m", "lexray", "doctor", *where, "--min-free-gib", "0", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def told(document: dict[str, Any], status: str) -> dict[str, str]:
    return {check["name"]: check["found"] for check in document["checks"] if check["status"] == status}


@pytest.mark.slow
def test_nodes_that_cannot_reach_each_other_or_us_are_named(place: Machines) -> None:
    file, addresses = sweep_on(place), place.addresses
    way = ["ip", "-n", place.space("w1"), "route", "add", "blackhole", f"{addresses['w2']}/32"]
    subprocess.run(way, check=True)
    code, document = doctor(place, file)
    assert code == 1
    assert set(told(document, "fail")) == {"network"}, told(document, "fail")
    assert f"{addresses['w1']} cannot reach {addresses['w2']}" in told(document, "fail")["network"]
    assert {"nodes", "dashboard", "token", "versions", "code", "data", "output", "region"} <= set(told(document, "ok"))
    place.cut("w2")
    _, document = doctor(place)
    lost = {**told(document, "fail"), **told(document, "warn")}["nodes"]  # silent, or already known to be dead
    assert addresses["w2"] in lost
