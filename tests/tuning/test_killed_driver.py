"""A sweep whose driver is killed at any moment, or whose Ray files are gone, ends with the same frontier."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sweeps import sweep_content, write_dataset, write_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

LONGEST_S = 25.0
"""Within it every stage of this sweep can be met, from the first trial's start to the last one's end."""
RESULT = ("trial", "status", "l0", "fvu", "explained_variance", "dead_fraction", "on_frontier")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("killed") / "data")


class Sweep:
    """Three trials, two at a time, by the command."""

    def __init__(self, data: str, place: Path, address: str) -> None:
        changes = {
            "training": {"rows": 128 * 400, "lr": 0.003},
            "axes": {"architecture": ["topk"], "width": [64], "target_l0": [2, 4, 8]},
            "every": {"log": 20, "evaluate": 100, "checkpoint": 40},
            "resources": {"cpus_per_worker": 2},
        }
        self.out = place / "out"
        file = write_sweep(place / "sweep.yaml", sweep_content(data, str(self.out), **changes))
        self._command = [sys.executable, "-m", "lexray", "sweep", file, "--address", address, "--json"]

    def killed_after(self, seconds: float) -> None:
        driver = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            driver.wait(seconds)
        except subprocess.TimeoutExpired:
            driver.send_signal(signal.SIGKILL)
            driver.wait()

    def run(self) -> list[dict[str, Any]]:
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
        return [{name: trial[name] for name in RESULT} for trial in json.loads(done.stdout)["trials"]]

    def finished(self) -> dict[str, float]:
        """When the dictionary of each trial that is done was written."""
        return {
            place.parent.parent.name: place.stat().st_mtime
            for place in self.out.glob("trials/*/dictionary/config.json")
        }

    def steps(self) -> dict[str, list[int]]:
        files = self.out.glob("trials/*/metrics.jsonl")
        return {
            file.parent.name: [json.loads(line)["step"] for line in file.read_text().splitlines()] for file in files
        }


@pytest.fixture(scope="module")
def undisturbed(data: str, ray_session: str, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    sweep = Sweep(data, tmp_path_factory.mktemp("undisturbed"), ray_session)
    sweep.results = sweep.run()  # type: ignore[attr-defined]
    return sweep


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=pytest.mark.slow if seed < 1 else pytest.mark.long) for seed in range(10)]
)
def test_a_killed_driver_costs_nothing_that_was_finished(
    seed: int, undisturbed: Any, data: str, ray_session: str, tmp_path: Path
) -> None:
    sweep, rng = Sweep(data, tmp_path, ray_session), random.Random(seed)
    sweep.killed_after(rng.uniform(0.3, 1) * LONGEST_S)
    time.sleep(rng.uniform(0, 2))
    if rng.random() < 0.5:
        sweep.killed_after(rng.uniform(0.3, 1) * LONGEST_S)
    shutil.rmtree(sweep.out / ".ray", ignore_errors=True)
    before = sweep.finished()
    assert sweep.run() == undisturbed.results
    after = sweep.finished()
    assert before.items() <= after.items(), "a finished dictionary was trained again"
    assert sweep.steps() == undisturbed.steps()


@pytest.mark.slow
def test_all_of_rays_files_gone_or_cut_a_finished_sweep_stays_finished(undisturbed: Any) -> None:
    before = undisturbed.finished()
    assert not (undisturbed.out / ".ray").exists(), "Ray's files name the machine"
    left = undisturbed.out / ".ray" / "tune"  # as a killed driver leaves them
    left.mkdir(parents=True)
    (left / "tuner.pkl").write_bytes(b"\x80\x04cut")
    assert undisturbed.run() == undisturbed.results
    shutil.rmtree(undisturbed.out / ".ray", ignore_errors=True)
    assert undisturbed.run() == undisturbed.results
    assert undisturbed.finished() == before
