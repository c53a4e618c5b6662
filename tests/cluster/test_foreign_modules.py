"""A user's folder may hold modules of any name: none of them is run, here or in Ray's workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sweeps import sweep_content, write_sweep
from training_synthetic import small_dataset

from benchmarks.raylets import raylets

NAMES = ("training", "storage", "tuning", "cluster", "lexray", "yaml", "pydantic", "torch", "statistics")
PROBE = """
import json, sys
from lexray.cluster.ray_backend.connect import connected

def look():
    import importlib.util, os, sys
    import lexray
    found = importlib.util.find_spec("training")
    return {"file": lexray.__file__, "path": sys.path, "folder": os.getcwd(), "training": found and found.origin}

with connected(sys.argv[1] if len(sys.argv) > 1 else None):
    import ray
    print(json.dumps(ray.get(ray.remote(look).options(num_cpus=0).remote())))
"""
OTHER_VERSION = """
import json, os, sys
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "env_vars": {"PYTHONPATH": sys.argv[1]}})
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder full of modules that leave a trace when they are run."""
    return foreign(tmp_path / "theirs", *NAMES)


def foreign(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True)
    for name in names:
        text = f"open({str(folder / 'ran')!r}, 'a').write({name!r})\nraise SystemExit({name!r})\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)


def tiny_sweep(folder: Path) -> dict:
    small_dataset(folder / "data")
    return sweep_content(str(folder / "data"), str(folder / "out"))


def lexray_command() -> list[str]:
    """The installed command; its own directory is the first entry of its path."""
    return [str(Path(sys.executable).with_name("lexray"))]


@pytest.mark.parametrize("command", ["installed", "module"])
def test_modules_of_the_working_directory_are_not_run(tmp_path: Path, folder: Path, command: str) -> None:
    if command == "module":
        (folder / "lexray.py").unlink()  # Python itself looks for `-m lexray` in the working directory first
    write_sweep(folder / "sweep.yaml", tiny_sweep(tmp_path))
    called = lexray_command() if command == "installed" else [sys.executable, "-m", "lexray"]
    done = run([*called, "plan", "sweep.yaml", "--json"], folder, PYTHONPATH=str(foreign(tmp_path / "p", *NAMES[:4])))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["trials"]
    assert not (folder / "ran").exists()
    assert not (tmp_path / "p" / "ran").exists()


@pytest.mark.slow
def test_workers_of_a_local_ray_import_the_code_of_the_command_alone(tmp_path: Path, folder: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    done = run([sys.executable, "-P", str(script)], folder, PYTHONPATH=str(foreign(tmp_path / "p", *NAMES[:4])))
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["file"].startswith(f"{seen['folder']}/lexray/")  # what was shipped; the directory holds nothing else
    assert str(folder) not in seen["path"]
    assert not {"", ".", str(tmp_path)} & set(seen["path"])
    assert not (folder / "ran").exists()


@pytest.mark.slow
def test_the_code_of_the_command_wins_over_what_a_node_has_installed(tmp_path: Path, folder: Path) -> None:
    installed = tmp_path / "installed" / "lexray"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("version = 'another'\n")
    script = tmp_path / "probe.py"
    script.write_text(PROBE)
    command = [sys.executable, "-P", "-c", OTHER_VERSION, str(installed.parent)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as cluster:
        assert cluster.stdin is not None
        assert cluster.stdout is not None
        try:
            address = cluster.stdout.readline().strip()
            done = run([sys.executable, "-P", str(script), address], folder)
        finally:
            cluster.stdin.write("done\n")
            cluster.stdin.close()
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert str(installed.parent) in seen["path"]
    assert seen["file"].startswith(f"{seen['folder']}/lexray/")


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_submitted_sweep_runs_the_senders_code_on_an_image_with_another_lexray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = foreign(tmp_path / "installed" / "lexray", "__init__", "__main__")
    monkeypatch.setenv("PYTHONPATH", str(installed.parent))
    file = write_sweep(tmp_path / "sweep.yaml", tiny_sweep(tmp_path))
    with raylets(tmp_path) as cluster:
        monkeypatch.delenv("PYTHONPATH")
        cluster.add("worker", 2)
        cluster.await_nodes()
        token = {"kind": "file", "path": str(cluster.token_file)}
        described = {"schema": 1, "name": "lab", "provider": "ray", "image": "registry/lexray:of-another-version"}
        described |= {"access": {"kind": "direct", "address": cluster.dashboard}, "token": token}
        (tmp_path / "cluster.json").write_text(json.dumps(described))
        target = ["--cluster", "cluster.json", "--trust", "--json"]
        state = {"XDG_STATE_HOME": str(tmp_path / "state")}
        submitted = run([*lexray_command(), "submit", file, "--wait", *target], tmp_path, **state)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert json.loads(submitted.stdout)["status"] == "SUCCEEDED"
    assert not (installed / "ran").exists()


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_a_sweep_in_a_folder_of_such_modules_runs_to_its_end(tmp_path: Path, folder: Path) -> None:
    write_sweep(folder / "sweep.yaml", tiny_sweep(tmp_path))
    done = run([*lexray_command(), "sweep", "sweep.yaml", "--json"], folder)
    assert done.returncode == 0, done.stderr
    assert {trial["status"] for trial in json.loads(done.stdout)["trials"]} <= {"done", "target missed"}
    assert not (folder / "ran").exists()
