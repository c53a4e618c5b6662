"""The doctor on clusters of several raylets: a healthy one passes, and each planted fault is found in under 30 s."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import pytest
from faulty_server import Fault, Refusal, Request, faulty_server
from synthetic import write_rows

from lexray.cluster.provisioned.description import Liveness
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LONGEST_S = 30
FULL_FROM_BYTES = 2**60
"""More than any disk has free."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a machine with a token, no W&B key, and one core for each process."""
    token = tmp_path / "token"
    token.write_text("t" * 40)
    missing = {"NETRC": str(tmp_path / "none"), "HOME": str(tmp_path)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "RAY_"))}
    return {**kept, **missing, "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def visits(folder: Path, environment: dict[str, str], spec: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the doctor says at each visit to one cluster."""
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, str(Path(__file__).parent / "doctor_patient.py"), str(folder)]
    environment = {**environment, **Liveness().ray_env, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads((folder / "diagnoses.json").read_text())
    return found


def told(document: dict[str, Any], *statuses: str) -> dict[str, str]:
    """What the checks of a status found, by their names."""
    return {check["name"]: check["found"] for check in document["checks"] if check["status"] in statuses}


def read_only(request: Request) -> Fault:
    return Refusal(403, "AccessDenied", "Access Denied") if request.method == "PUT" else None


def test_planted_faults_are_found_and_a_healthy_cluster_passes(
    s3_server: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    client = boto3.client("s3", endpoint_url=s3_server, region_name="us-east-1")
    client.create_bucket(Bucket="patient")
    client.create_bucket(Bucket="patient-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    write_rows(Store.at("s3://patient/data", StorageSettings(endpoint_url=s3_server)))
    (tmp_path / "old" / "deepspeed-0.0.1.dist-info").mkdir(parents=True)
    (tmp_path / "old" / "deepspeed-0.0.1.dist-info" / "METADATA").write_text("Name: deepspeed\nVersion: 0.0.1\n")
    here = {"data_url": "s3://patient/data", "output_url": "s3://patient/out", "wandb_mode": "offline"}
    with faulty_server(s3_server, read_only) as server:
        well = {"request": {**here, "storage": {"endpoint_url": s3_server}}, "limits": {"free_disk_bytes": 0}}
        ill = {
            "request": {
                "data_url": "s3://patient/nothing",
                "output_url": "s3://patient-far/out",
                "storage": {"endpoint_url": server.url},
                "wandb_mode": "online",
            },
            "limits": {"free_disk_bytes": FULL_FROM_BYTES},
            "skew_s": 120.0,
        }
        broken = {**well, "other_libraries": str(tmp_path / "old"), "freezes_a_node": True}
        first, second, third = visits(tmp_path, environment, [well, ill, broken])
    assert set(told(first, "fail", "warn")) <= {"memory"}  # others may use the machine, too
    assert {"token", "liveness", "data", "output", "network"} <= set(told(first, "ok"))
    found = told(second, "fail")
    assert set(found) == {"data", "output", "region", "disk", "clock", "wandb"}
    assert f"({second['address']}): +120.0 s" in found["clock"]
    assert "write failed" in found["output"]
    assert "patient-far/out lies in eu-west-1" in found["region"]
    found = told(third, "fail")
    assert set(found) == {"nodes", "versions"}
    assert f"({third['address']}): no answer in" in found["nodes"]
    assert "deepspeed 0.0.1" in found["versions"]
    assert max(document["took_s"] for document in (first, second, third)) < LONGEST_S
    assert Store.at("s3://patient/out", StorageSettings(endpoint_url=s3_server)).list_files() == []


def test_a_machine_of_its_own_is_looked_at_behind_a_token(tmp_path: Path, environment: dict[str, str]) -> None:
    environment = {**environment, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "lexray", "doctor", "--json", "--min-free-gib", "0", "--data", str(tmp_path / "x")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    document = json.loads(done.stdout)
    assert done.returncode == 1
    assert set(told(document, "fail")) == {"data"}
    assert "in force" in told(document, "ok")["token"]  # a Ray of lexray's own has one, whatever the variable says
    assert {"dashboard", "liveness", "clock"} <= set(told(document, "ok"))
