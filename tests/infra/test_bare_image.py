"""Head and nodes of `python_environment: uv` on EC2: the image has Ray alone, the start-up script brings the rest."""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_environment import bare_environment
from hcl_files import INFRA
from namespaces import GCS_PORT, Machines, wait_until
from node_scripts import send_work, start_head, workers

from lexray.cluster.provisioned.description import SETUP_TIMEOUT_S

MODULE = INFRA / "modules/aws/ray-ec2"
PROGRAMS = sorted((MODULE / "programs").glob("*.py"))
WAIT_S = 200.0


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_programs_beside_jobs_import_ray_and_the_standard_library_alone(program: Path) -> None:
    tree = ast.parse(program.read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {str(name).partition(".")[0] for name in imported} <= {"ray", *sys.stdlib_module_names}


def test_the_start_up_script_brings_every_program_that_it_runs() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in [*MODULE.glob("*.tf"), *MODULE.glob("templates/*")])
    for program in PROGRAMS:
        assert f'"{program.name}"' in text
        assert f"lexray.cluster.node.{program.stem}" in text
    assert text.count("lexray.cluster.") == len(PROGRAMS)
    assert f'RAY_JOB_START_TIMEOUT_SECONDS = "{SETUP_TIMEOUT_S}"' in text


@pytest.fixture
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("bare")
    yield bare_environment(folder)
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_head_without_lexray_asks_ec2_for_a_node_and_lets_one_leave(
    programs: Path, hosts: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    public = tmp_path / "public"
    shutil.copytree(MODULE / "programs", public / "lexray" / "cluster" / "node")
    ec2, env = start_head(hosts, programs, PYTHONPATH=str(public))
    work = send_work(hosts, env, programs)
    wait_until(lambda: "running" in workers(ec2).values(), "an instance for the work", WAIT_S)
    assert work.poll() is None
    leave = [
        "-m",
        "lexray.cluster.node.drain_node",
        f"{hosts.addresses['head']}:{GCS_PORT}",
        "i-nowhere",
        "5",
        "test",
    ]
    used = ["-c", "from lexray.cluster.node.idle_head import is_used; print('used:', is_used())"]
    assert [hosts.run("head", [str(programs / "python"), *one], **env).wait(60) for one in (leave, used)] == [1, 0]
    log = (hosts.place / "head.log").read_text(encoding="utf-8", errors="replace")
    assert "living nodes are 'i-nowhere', not one" in log
    assert "used: True" in log
    assert "ModuleNotFoundError" not in log
