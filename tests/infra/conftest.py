"""Terraform where it is installed, and an AWS that is simulated."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import terraform_tool
from namespaces import Machines, machines, why_not


@pytest.fixture(scope="session")
def cli_config(tmp_path_factory) -> Path:
    """Terraform's settings. Without Terraform the test is skipped by name."""
    if shutil.which("terraform") is None:
        pytest.skip("terraform is not installed: infra/ is checked by reading alone")
    file = tmp_path_factory.mktemp("terraform") / "terraformrc"
    terraform_tool.write_cli_config(file)
    return file


@pytest.fixture(scope="session")
def infra_copy(cli_config, tmp_path_factory) -> Path:
    """A copy of infra/'s Terraform files, initialised. No provider to be had is a skip, but not in CI."""
    folder = terraform_tool.copy_of_infra(tmp_path_factory.mktemp("infra"))
    try:
        for root in ("aws-ec2", "aws-eks"):
            terraform_tool.Terraform(folder=folder / root, cli_config=cli_config).run(
                "init", "-backend=false", "-no-color"
            )
    except AssertionError as error:
        if terraform_tool.mirror() is not None or os.environ.get("CI") == "true":
            raise
        pytest.skip(f"terraform has no AWS provider: set LEXRAY_TF_MIRROR to a folder with one ({str(error)[-200:]})")
    return folder


@pytest.fixture(scope="session")
def aws_endpoint(tmp_path_factory):
    """Address of a simulated AWS of its own, empty at first."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("aws") / "log"
    with log.open("wb") as opened:
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("aws_simulator.py")), str(port)],
            stdout=opened,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait_until_it_answers(server, port, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_until_it_answers(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text(errors="replace")[-3000:]
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"the simulated AWS did not answer on port {port}")


@pytest.fixture
def hosts(tmp_path) -> Iterator[Machines]:
    """Machines that are network namespaces; skipped where there can be none."""
    if reason := why_not():
        pytest.skip(reason)
    with machines(tmp_path) as made:
        yield made
