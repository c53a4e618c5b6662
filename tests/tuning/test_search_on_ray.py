"""A sweep that chooses its trials, on a real Ray: killed at any moment it goes on from its folder alone."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.sweep_plan import plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TRIALS = 3
CHANGES: dict[str, Any] = {
    "training": {"rows": 128 * 400},
    "axes": {
        "architecture": ["topk"],
        "width": {"from": 32, "to": 128, "whole": True},
        "target_l0": [2, 4],
        "lr": {"from": 0.001, "to": 0.01, "scale": "log"},
    },
    "search": {"kind": "optuna", "trials": TRIALS},
    "stop": {"rule": "frontier"},
    "every": {"log": 20, "evaluate": 10, "checkpoint": 40},
    "resources": {"cpus_per_worker": 4},  # one trial at a time
}


def records(out: Path) -> list[dict[str, Any]]:
    """Those of the trials, in the order in which they were asked."""
    found = [json.loads(file.read_text()) for file in out.glob("trials/*/trial.json")]
    return sorted(found, key=lambda record: record["number"])


def asked_again(data: str, out: Path, place: Path) -> Any:
    """What the search asks when the record of the last trial is lost."""
    shutil.copytree(out, place / "out", ignore=shutil.ignore_patterns(".ray", "wandb"))
    shutil.rmtree(place / "out" / "trials" / records(out)[-1]["trial"])
    file = write_sweep(place / "again.yaml", sweep_content(data, str(place / "out"), **CHANGES))
    made = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
    assert made.search is not None
    assert made.unfinished == []
    trial = made.search.ask()
    assert trial is not None
    return trial.number, trial.id, trial.point


def test_a_search_whose_driver_is_killed_goes_on_from_its_folder_alone(ray_session, tmp_path):
    data, out = write_dataset(tmp_path / "data"), tmp_path / "out"
    file = write_sweep(tmp_path / "sweep.yaml", sweep_content(data, str(out), **CHANGES))
    command = [sys.executable, "-m", "lexray", "sweep", file, "--address", ray_session, "--json"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 250
    while time.monotonic() < deadline and not any(r["number"] == 1 and r["status"] == "running" for r in records(out)):
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = [(record["number"], record["trial"], record["point"]) for record in records(out)]
    assert [number for number, *_ in before] == [0, 1]
    first = out / "trials" / before[0][1] / "dictionary" / "config.json"
    written = first.stat().st_mtime_ns
    shutil.rmtree(out / ".ray", ignore_errors=True)

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "3 trials, 1 finished before, 1 to be chosen as it runs, 400 steps to do" in done.stderr
    assert len(json.loads(done.stdout)["trials"]) == TRIALS
    after = [(record["number"], record["trial"], record["point"]) for record in records(out)]
    assert after[:2] == before
    assert all(record["status"] in ("done", "stopped early") for record in records(out))
    assert first.stat().st_mtime_ns == written, "a finished dictionary was trained again"
    assert after[2] == asked_again(data, out, tmp_path / "copy")
    assert "optuna: sampler tpe, seed 0, 3 trials" in (out / "report.html").read_text()
