"""`lexray data` as a user calls it: results on stdout, damage on stderr, the right exit code."""

import json
import sys

import pytest
from synthetic import write_rows

from cluster.cli import main

SHARD = "shards/000000.safetensors"


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


def flip_byte(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


# verify


def test_verify_of_a_sound_dataset_is_exit_code_0_and_one_table(lexray, tmp_path):
    write_rows(tmp_path, [40, 24], sites={"early": 3, "late": 5})
    code, out, err = lexray("data", "verify", tmp_path)
    assert (code, err.strip()) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"file://{tmp_path}: 64 rows in 2 shards, sound"
    assert [line.split()[0] for line in lines[1:]] == ["site", "early", "late"]


def test_verify_of_a_damaged_dataset_is_exit_code_1_and_names_all_of_it(lexray, tmp_path):
    shard = write_rows(tmp_path, 40, chunk_rows=8).manifest.shards[0]
    flip_byte(tmp_path / SHARD, shard.offsets["x"])
    flip_byte(tmp_path / SHARD, shard.offsets["document"])
    code, out, err = lexray("data", "verify", tmp_path)
    assert code == 1
    assert "2 damages, named on stderr" in out
    named = [line.split(": ")[1] for line in err.splitlines() if line.startswith("damaged: ")]
    assert named == [f"{SHARD}, x, chunk 0", f"{SHARD}, document, chunk 0"]


def test_verify_as_json_is_one_document_with_everything(lexray, tmp_path):
    shard = write_rows(tmp_path, 40, chunk_rows=8).manifest.shards[0]
    flip_byte(tmp_path / SHARD, shard.offsets["x"])
    code, out, _ = lexray("data", "verify", tmp_path, "--json")
    content = json.loads(out)
    assert (code, content["sound"], content["rows"]) == (1, False, 40)
    assert [(one["file"], one["tensor"], one["chunk"]) for one in content["damage"]] == [(SHARD, "x", 0)]
    assert (content["sites"]["x"]["rows"], content["sites"]["x"]["duplicates"]) == (32, 0)


def test_verify_of_no_dataset_is_exit_code_2(lexray, tmp_path):
    code, out, err = lexray("data", "verify", tmp_path)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "no manifest.json there" in err


def test_inspect_shows_what_a_dataset_holds(lexray, tmp_path):
    write_rows(tmp_path, 40, sites={"early": 3}, provenance={"text": "planted"})
    code, out, err = lexray("data", "inspect", tmp_path)
    assert (code, err) == (0, "")
    assert "40 rows in 1 shards" in out
    assert "text: planted" in out
