"""How the tests of this floor call the command line."""

import sys

import pytest

from lexray.cluster.cli import main


@pytest.fixture(autouse=True)
def state_home(tmp_path_factory, monkeypatch):
    """Folder of the user's state: what one test agrees to holds for no other."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


@pytest.fixture
def lexray(capsys, monkeypatch):
    """Runs a command; returns its exit code, stdout and stderr."""

    def run(*command: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["lexray", *map(str, command)])
        with pytest.raises(SystemExit) as stop:
            main()
        output = capsys.readouterr()
        return int(stop.value.code or 0), output.out, output.err

    return run
