"""The batch script for Slurm: what it says to Slurm, and a sweep by it over three network namespaces."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from namespaces import wait_until
from running_cluster import finished_in
from slurm_stand_ins import JOB, SCRIPT, Slurm, directives, send_late
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.cluster.node.slurm_node import address_towards, lead, memory_arguments
from lexray.cluster.provisioned.connection import read_description
from lexray.cluster.provisioned.description import Ssh
from lexray.storage.store import Store

NAMES = ("node-1", "node-2", "node-3")


def test_shellcheck_finds_nothing_in_the_batch_script():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_slurm_warns_the_shell_alone_and_may_queue_the_job_again():
    assert directives().keys() >= {"requeue", "time", "nodes"}
    assert directives()["signal"].startswith("B:USR1@")
    assert directives()["ntasks-per-node"] == "1"
    assert directives()["open-mode"] == "append", "else a requeued job overwrites its log"


def test_ray_divides_what_slurm_gives_and_nothing_else():
    assert memory_arguments({}) == memory_arguments({"SLURM_MEM_PER_NODE": "0"}) == []
    mib = 2**20
    expected = [f"--memory={650 * mib}", f"--object-store-memory={300 * mib}"]
    assert memory_arguments({"SLURM_MEM_PER_NODE": "1000"}) == expected
    assert memory_arguments({"SLURM_MEM_PER_CPU": "100", "SLURM_CPUS_PER_TASK": "10"}) == expected


def test_an_address_is_that_on_the_way_to_the_head():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.77", 9))
        assert address_towards("192.0.2.77") == probe.getsockname()[0]


def test_the_head_describes_itself_for_login_nodes_and_shows_nobody_its_token(tmp_path):
    lead(tmp_path, {"SLURM_JOB_ID": JOB, "SLURMD_NODENAME": "node-1"}, "10.0.0.5", 6001, 6002)
    token = tmp_path / "token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    description = read_description(str(tmp_path / "cluster.json"))
    assert description.access == Ssh(host="node-1", address="10.0.0.5", port=6002)
    assert description.token is not None
    assert token.read_text() not in "".join(file.read_text() for file in tmp_path.glob("*.json"))
    assert json.loads((tmp_path / "head.json").read_text())["port"] == 6001


@pytest.fixture
def slurm(hosts, tmp_path) -> Slurm:
    return Slurm(hosts, tmp_path / "slurm", NAMES)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_over_three_nodes_saves_before_the_time_limit_and_goes_on_when_it_is_requeued(slurm, tmp_path):
    output = Store.at(str(tmp_path / "runs/widths"))
    content = sweep_content(
        write_dataset(tmp_path / "rows"), output.url, training={"rows": 128 * 400, "lr": 0.003},
        axes={"architecture": ["topk"], "width": [64], "target_l0": [2]}, wandb={"mode": "disabled"},
        resources={"workers": 3},
    )  # fmt: skip
    sweep = write_sweep(tmp_path / "sweep.yaml", content)

    first = slurm.sbatch(sweep)
    wait_until(lambda: first.poll() is not None or len(logged(output)) > 3, "steps of the first run", 400)
    assert first.poll() is None, slurm.log.read_text()[-5000:]
    send_late(first)
    assert first.wait(timeout=200) == 0, slurm.log.read_text()[-5000:]
    assert slurm.requeued() == [f"requeue {JOB}"]
    assert slurm.processes() == []
    done = logged(output)

    second = slurm.sbatch(sweep)
    assert second.wait(timeout=400) == 0, slurm.log.read_text()[-5000:]
    assert finished_in(output) == ["topk-w64-l2"]
    assert logged(output)[: len(done)] == done, "it went on where it was"
    assert slurm.requeued() == [f"requeue {JOB}"]
    assert slurm.processes() == []
    assert list(slurm.submit_folder.iterdir()) == []


def logged(output: Store) -> list[int]:
    """Steps of the only trial that are in its log."""
    files = list(Path(str(output.local_path)).glob("trials/*/metrics.jsonl"))
    return [json.loads(line)["step"] for file in files for line in file.read_text().splitlines()]


def test_a_batch_script_without_a_sweep_file_says_how_to_call_it():
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "which sweep file? sbatch infra/slurm/sweep.sbatch SWEEP.yaml" in done.stderr
