"""How `lexray doctor` is called wrongly: one line, exit code 2, before any node is asked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shut_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def wrong_calls(folder: Path) -> dict[str, list[str]]:
    """Arguments by what the line must say."""
    (folder / "sweep.yaml").write_text("name: x\n")
    (folder / "cluster.json").write_text('{"schema": 1, "name": "x"}')
    return {
        "--token-file": ["--token-file", str(folder / "none")],
        "none.yaml: no such file": [str(folder / "none.yaml")],
        "sweep.yaml: ": [str(folder / "sweep.yaml")],
        "no storage scheme is called 'foo'": ["--data", "foo://bucket/data"],
        "nobody answers there": ["--address", f"127.0.0.1:{shut_port()}"],
        "nothing answers there": ["--address", f"http://127.0.0.1:{shut_port()}"],
        "both name a cluster": ["--address", "http://127.0.0.1:1", "--cluster", str(folder / "cluster.json")],
        "cluster.json: ": ["--cluster", str(folder / "cluster.json")],
    }


def test_wrong_input_is_one_line_that_names_it(tmp_path, lexray) -> None:
    for said, arguments in wrong_calls(tmp_path).items():
        code, out, err = lexray("doctor", *arguments)
        assert (code, out) == (2, "")
        assert said in err
        assert err.count("\n") == 1


@pytest.mark.ray
def test_a_ray_that_wants_a_token_refuses_who_has_none_at_once(ray_session, tmp_path) -> None:
    """Ray itself tries for 20 s, and then says that nobody is there."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    command = [sys.executable, "-m", "lexray", "doctor", "--address", ray_session]
    environment |= {"HOME": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this cluster wants another token" in done.stderr
    assert "InvalidAuthToken" not in done.stderr
