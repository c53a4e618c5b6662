"""Commands on the url of a generated dataset."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from lexray.cluster.cli import app
from lexray.cluster.doctor.findings import StoreSpeed
from lexray.cluster.doctor.stores import read_one_chunk
from lexray.storage.store import StorageSettings

URL = "synthetic://synthsaebench-1k?rows=20_000&seed=3"


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_inspect_shows_it_with_what_it_is_generated_from():
    shown = run("data", "inspect", URL).output
    assert "20,000 rows generated where they are read, 7.7 MB" in shown
    assert '"features_seed": 42' in shown
    document = json.loads(run("data", "inspect", URL, "--json").output)
    assert document["url"] == "synthetic://synthsaebench-1k?rows=20000&seed=3"
    assert document["sites"]["site"]["width"] == 96


def test_doctor_reads_a_chunk_of_it():
    found = read_one_chunk(URL, StorageSettings(), 5)
    assert isinstance(found, StoreSpeed)
    assert found.bytes == 1024 * 96 * 4
