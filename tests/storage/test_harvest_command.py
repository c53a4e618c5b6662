"""The command: interrupted it says how to continue, and a cluster continues what one machine began."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from harvest_cases import files_of, harvest_file, write_text

from lexray.storage.harvest.harvest import harvest

DOCUMENTS = [" ".join(f"w{(i * (n + 3) + n) % 40}" for i in range(60)) for n in range(1500)]


def command(file: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "lexray", "harvest", str(file), *options]


def write_file(tmp_path: Path, name: str, **changes: Any) -> Path:
    text = {"files": write_text(tmp_path / "documents", DOCUMENTS)}
    settings = {"text": text, "spread": True, "shard_rows": 256, "chunk_rows": 64, "cpus_per_worker": 1}
    config = harvest_file(tmp_path, output=str(tmp_path / name), **settings | changes)
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return path


@pytest.mark.slow
@pytest.mark.ray
def test_an_interrupt_ends_cleanly_and_a_cluster_continues(tmp_path: Path, ray_session: str) -> None:
    file, journal = write_file(tmp_path, "out"), tmp_path / "out" / "harvest"
    running = subprocess.Popen(command(file), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while running.poll() is None and len(list(journal.glob("[0-9]*.json"))) < 5:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=120)
    assert running.returncode == 130, stderr
    assert "run the same command again to continue" in stderr
    assert "Traceback" not in stderr
    assert stdout == ""
    kept = len(list(journal.glob("[0-9]*.json")))
    assert 5 <= kept < 300
    again = subprocess.run(
        command(file, "--address", ray_session, "--json"), capture_output=True, text=True, check=True
    )
    said = json.loads(again.stdout)
    assert (said["rows"], said["reused"]) == (90_000, False)
    alone = write_file(tmp_path, "alone")
    harvest(harvest_file(tmp_path, **yaml.safe_load(alone.read_text())))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")


def test_tokenizing_tells_how_far_it_is(tmp_path: Path) -> None:
    text = {"files": write_text(tmp_path / "documents", DOCUMENTS[:100])}
    seen: list[tuple[int, int | None]] = []
    config = harvest_file(tmp_path, text=text, max_rows=5000, shard_rows=4096)
    harvest(config, on_tokens=lambda found, wanted: seen.append((found, wanted)))
    assert len(seen) >= 3
    assert seen == sorted(set(seen))
    assert {wanted for _, wanted in seen} == {5000}
