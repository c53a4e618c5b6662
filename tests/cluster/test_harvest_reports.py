"""`lexray harvest` says what it mended in a corpus, names what it cannot read, and calls nothing else an interrupt."""

import gzip
import json
import sys

import pytest
import yaml
from harvest_cases import harvest_file

from lexray.cluster.cli import main
from lexray.cluster.commands import harvest


def write_file(tmp_path, **text):
    config = harvest_file(tmp_path, text=text)
    file = tmp_path / "harvest.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return file


def test_a_corpus_that_was_cut_short_is_wrong_input(lexray, tmp_path):
    packed = gzip.compress(b'{"text": "w1 w2"}\n' * 1000)
    (tmp_path / "x.jsonl.gz").write_bytes(packed[:-20])
    code, out, err = lexray("harvest", write_file(tmp_path, jsonl=f"{tmp_path}/x.jsonl.gz"))
    assert (code, out) == (2, "")
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert line.startswith(f"error text.jsonl: {tmp_path}/x.jsonl.gz is cut short or damaged: cannot unpack it as gzip")
    assert "interrupted" not in err


def test_what_was_mended_is_told_and_kept(lexray, tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "w1"}\n{"text": "w2 \\ud83d [red]"}\n{"text": null}\n')
    file = write_file(tmp_path, jsonl=f"{tmp_path}/x.jsonl")
    for reused in (False, True):
        code, out, err = lexray("harvest", file, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert found["reused"] is reused
        assert found["provenance"]["corpus"] == {
            "lone_surrogates": {"count": 1, "first": f"text.jsonl: {tmp_path}/x.jsonl line 2"},
            "missing_texts": {"count": 1, "first": f"text.jsonl: {tmp_path}/x.jsonl line 3"},
        }
        assert [line for line in err.splitlines() if line.startswith("corpus: ")] == [
            "corpus: 1 halves of characters (lone surrogates) replaced by U+FFFD "
            f"(the first: text.jsonl: {tmp_path}/x.jsonl line 2)",
            "corpus: 1 documents without a text (no such key, or null), taken as empty "
            f"(the first: text.jsonl: {tmp_path}/x.jsonl line 3)",
        ]


@pytest.mark.parametrize("stray", [EOFError("Ran out of input"), RuntimeError("odd"), StopIteration()])
def test_a_stray_error_is_no_interrupt(stray, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise stray

    monkeypatch.setattr(harvest, "read_config_file", fails)
    monkeypatch.setattr(sys, "argv", ["lexray", "harvest", str(tmp_path)])
    with pytest.raises(type(stray)) as caught:
        main()
    assert caught.value is stray
    assert "interrupted" not in capsys.readouterr().err


def test_an_interrupt_is_one(lexray, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(harvest, "read_config_file", interrupted)
    code, out, err = lexray("harvest", tmp_path)
    assert (code, out) == (130, "")
    assert "interrupted; run the same command again to continue" in err
