"""Whatever a command wants of a store that nobody finds, one line says which place it was."""

import pytest

from lexray.cluster import cli
from lexray.storage.objects import connections, first_answer
from lexray.storage.objects.retries import StoreUnavailableError

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


GIVEN_UP = "s3://b/file: given up after 30 attempts in 120 s; Please reduce your request rate"


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


@pytest.mark.parametrize("words", [("import", "s3://b/x", "out"), ("stop", "s3://b/x")], ids=" ".join)
def test_without_credentials_one_line_says_so(lexray, monkeypatch, tmp_path, words):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {"EC2_METADATA_DISABLED": "true", "ENDPOINT_URL": "http://127.0.0.1:1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    code, out, err = lexray(*words)
    assert (code, out) == (2, ""), err
    assert "Unable to locate credentials" in err
    assert err.strip().count("\n") == 0, err


def test_a_store_that_is_lost_amid_a_run_fails_the_run_in_one_line(lexray, monkeypatch):
    def lost(**_: object) -> None:
        raise StoreUnavailableError(GIVEN_UP)

    monkeypatch.setattr(cli, "app", lost)
    code, out, err = lexray("report", "s3://b")
    assert (code, out, err.strip()) == (1, "", f"error {GIVEN_UP}")


@pytest.mark.parametrize("url", ["s3:/x", "s3://", "s3://b*d/x", "s3://b//x", "zip::s3://b/x", "/tmp/a\x1b[2J"])
def test_a_url_that_names_no_place_is_one_line(lexray, monkeypatch, tmp_path, url):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        code, out, err = lexray(*(url if word == "PLACE" else word for word in command))
        assert (code, out) == (2, ""), (command, err)
        assert err.strip().startswith(f"error url {url!r}: "), (command, err)
        assert err.strip().count("\n") == 0, (command, err)
    assert not any(tmp_path.iterdir())


def test_a_bucket_that_does_not_exist_is_one_line(lexray, monkeypatch, tmp_path, s3_server):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for command in COMMANDS:
        code, out, err = lexray(*("s3://no-such-bucket/x" if word == "PLACE" else word for word in command))
        assert (code, out) == (2, ""), (command, err)
        assert "bucket 'no-such-bucket' does not exist" in err, (command, err)
        assert err.strip().count("\n") == 0, (command, err)
    assert not any(tmp_path.iterdir())
