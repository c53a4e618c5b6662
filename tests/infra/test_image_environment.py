"""The environment that the image has, by the Dockerfile's own lines: all that head and nodes run starts there.

The environment of the tests has more, so that what only a developer has could pass unseen.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import image_build
import pytest
from namespaces import GCS_PORT, wait_until
from node_scripts import send_work, start_head, workers

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WAIT_S = 200.0


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Iterator[Path]:
    """The environment's `bin`."""
    folder = tmp_path_factory.mktemp("image")
    yield image_build.build(folder)
    shutil.rmtree(folder)  # gigabytes


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd="/")


def test_it_has_lexray_and_its_libraries_and_nothing_of_a_developer(programs):
    installed = run(programs / "python", "-m", "pip", "list", "--format=freeze").stdout
    assert {"lexray", "boto3", "transformers"} <= {line.partition("==")[0] for line in installed.splitlines()}
    assert "pytest" not in installed
    assert run(programs / "python", "-m", "pip", "check").returncode == 0


def test_commands_start(programs):
    assert "Usage" in run(programs / "lexray", "--help").stdout
    left = run(programs / "python", "-m", "lexray.cluster.node.drain_node", "127.0.0.1:9", "i-1", "5")
    assert (left.returncode, "ValueError: not enough values to unpack" in left.stderr) == (1, True), left.stderr
    for module in ("ray.autoscaler._private.aws.node_provider", "ray.autoscaler._private.kuberay.run_autoscaler"):
        done = run(programs / "python", "-c", f"import {module}")
        assert done.returncode == 0, done.stderr


def test_the_head_stays_up_asks_ec2_for_a_node_and_lets_one_leave(programs, hosts):
    ec2, env = start_head(hosts, programs)
    work = send_work(hosts, env, programs)
    wait_until(lambda: "running" in workers(ec2).values(), "an instance for the work", WAIT_S)
    assert work.poll() is None
    command = [programs / "python", "-m", "lexray.cluster.node.drain_node"]
    arguments = [f"{hosts.addresses['head']}:{GCS_PORT}", "i-nowhere", "5", "test"]
    left = hosts.run("head", [*map(str, command), *arguments], **env)
    assert left.wait(60) == 1
    log = (hosts.place / "head.log").read_text(encoding="utf-8", errors="replace")
    assert "living nodes are 'i-nowhere', not one" in log
    assert "ImportError" not in log
    assert "ModuleNotFoundError" not in log
    assert hosts.alive() == [hosts.addresses["head"]]
