"""Whatever a command wants of a store that nobody finds, one line says which place it was."""

import pytest

from cluster import cli
from storage.objects import connections, first_answer

COMMANDS = [
    ("report", "PLACE"),
    ("compare", "PLACE", "PLACE"),
    ("status", "PLACE"),
    ("logs", "PLACE"),
    ("stop", "PLACE"),
    ("list", "PLACE"),
    ("resume", "PLACE", "--address", "http://127.0.0.1:1"),
    ("wandb", "sync", "PLACE"),
    ("measure", "PLACE"),
    ("diagnose", "PLACE"),
    ("export", "PLACE", "out", "--to", "sae-lens"),
    ("import", "PLACE", "out"),
    ("data", "inspect", "PLACE"),
    ("data", "verify", "PLACE"),
    ("data", "bench", "PLACE"),
    ("data", "import", "PLACE", "out"),
]


@pytest.fixture(autouse=True)
def _unknown_stores(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(connections, "_CONNECTIONS", {})
    monkeypatch.setattr(first_answer._FIRST, "answered", set())


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_place_that_does_not_answer_is_one_line(lexray, monkeypatch, tmp_path, command):
    monkeypatch.setattr(cli, "FIRST_ANSWER_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.chdir(tmp_path)
    code, out, err = lexray(*(f"s3://nowhere/{tmp_path.name}" if word == "PLACE" else word for word in command))
    assert (code, out) == (2, ""), err
    assert f"s3://nowhere/{tmp_path.name}" in err
    assert err.strip().count("\n") == 0, err
    assert not any(tmp_path.iterdir())
