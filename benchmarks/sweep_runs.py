"""Sweeps that benchmarks run by lexray's own commands, each in a process of its own, and what their folders tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lexray.tuning.sweep_folder import FINISHED, SweepFolder, TrialRecord

ROOT = Path(__file__).resolve().parent.parent
COMMAND_TIMEOUT_S = 3600


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Result of a command."""

    out: str
    began_s: float
    """Unix time."""
    seconds: float


def lexray(*words: str) -> Answer:
    """Run a command of lexray to its end. Raises RuntimeError with its complaint where it fails."""
    began_s, began = time.time(), time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-m", "lexray", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    if done.returncode:
        raise RuntimeError(f"lexray {' '.join(words)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return Answer(out=done.stdout, began_s=began_s, seconds=time.perf_counter() - began)


def sweep_content(data: str, output: str, *, batch_rows: int, steps: int, **blocks: Any) -> dict[str, Any]:
    """The content of a sweep file without W&B; a trial is evaluated and saved once, at its end."""
    return {
        "name": "benchmark",
        "output": output,
        "data": {"url": data, "site": "site", "batch_rows": batch_rows, "held_out": 0.02},
        "training": {"rows": steps * batch_rows, "lr": 0.001},
        "options": {"all": {"dead_after_rows": 10**9}},  # no AuxK: a plain loop has none either
        "every": {"log": 10, "evaluate": 10**6, "checkpoint": 10**6},
        "wandb": {"mode": "disabled"},
        **blocks,
    }


def write_sweep(file: Path, content: dict[str, Any]) -> str:
    file.write_text(yaml.safe_dump(content))
    return str(file)


def records_of(output: str) -> list[TrialRecord]:
    """Return the records of a sweep whose trials have all ended well. Raises RuntimeError where one has not."""
    folder = SweepFolder.existing(output)
    records = [folder.read_trial(trial) for trial in folder.store.list_folders("trials")]
    found = [record for record in records if record is not None]
    bad = [f"{record.name}: {record.status}, {record.reason}" for record in found if record.status not in FINISHED]
    if bad or len(found) < len(records):
        raise RuntimeError(f"{output}: {len(records) - len(found)} trials without a record; {'; '.join(bad)}")
    return found


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Interval of Unix times."""

    begin_s: float
    end_s: float


def covered_s(intervals: Sequence[Interval]) -> float:
    """Seconds that lie in at least one of them."""
    total, until = 0.0, float("-inf")
    for one in sorted(intervals, key=lambda interval: interval.begin_s):
        total += max(0.0, one.end_s - max(one.begin_s, until))
        until = max(until, one.end_s)
    return total


@dataclass(frozen=True, kw_only=True)
class Times:
    """When a trial's processes ran, and when they were in training steps."""

    alive: Interval
    training: Interval


def times_of(output: str, record: TrialRecord) -> Times:
    """From a local sweep's folder: a dictionary is written at the end of a training, a record at the end of a trial's
    work, its hours when its workers are gone.

    Steps are taken to have run without a break before the dictionary was saved.
    """
    place = Path(output) / "trials" / record.trial
    ended_s = (place / "trial.json").stat().st_mtime
    gone_s = (place / "spent.json").stat().st_mtime
    saved_s = (place / "dictionary" / "dictionary.safetensors").stat().st_mtime
    return Times(
        alive=Interval(begin_s=ended_s - record.timing["total_s"], end_s=gone_s),
        training=Interval(begin_s=saved_s - record.timing["train_s"], end_s=saved_s),
    )


def logged(output: str, trial: str) -> list[dict[str, Any]]:
    """The records of a trial of a local sweep; those of a file that is being written anew, if need be."""
    file = Path(output) / "trials" / trial / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
