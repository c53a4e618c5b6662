"""Compares a sweep's estimates with the actual values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lexray.storage.store import Store
from lexray.tuning.folder_documents import PLAN, PLAN_BYTES, read_if_there
from lexray.tuning.sweep_folder import DONE, TARGET_MISSED, TrialRecord

PLAN_FILE = "plan.json"


def read_plan(store: Store) -> dict[str, Any] | None:
    """Read the document of `Plan.to_dict`; None if there is none. Raises CorruptDataError."""
    return read_if_there(store, PLAN_FILE, PLAN, remedy="remove it to go on without it", max_bytes=PLAN_BYTES)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """An estimated and an actual value."""

    name: str
    unit: str
    """`bytes` or `seconds`."""
    predicted: float
    real: float

    @property
    def ratio(self) -> float:
        """Estimated over actual value."""
        return self.predicted / self.real if self.real else math.nan


def outcomes(
    document: Mapping[str, Any] | None,
    records: Sequence[TrialRecord],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Outcome]:
    """Compare memory, time and bytes of finished trials, as far as they were both estimated and measured."""
    if document is None:
        return []
    estimated = {trial["id"]: trial for trial in document.get("trials", ())}
    pairs = [(estimated[r.trial], r) for r in records if r.status in (DONE, TARGET_MISSED) and r.trial in estimated]
    found = []
    needs = [(p.get("memory", {}).get("resident"), r.memory.get("peak_bytes")) for p, r in pairs]
    peaks = [(need, peak) for need, peak in needs if need and peak]
    if peaks:
        largest = max(peaks, key=lambda pair: pair[1])
        found.append(Outcome(name="largest worker, peak", unit="bytes", predicted=largest[0], real=largest[1]))
    seconds = [(p.get("seconds"), r.timing.get("total_s")) for p, r in pairs]
    times = [(predicted, real) for predicted, real in seconds if predicted and real]
    if times:
        predicted, real = (sum(column) for column in zip(*times, strict=True))
        found.append(Outcome(name="wall time of the trials", unit="seconds", predicted=predicted, real=real))
    is_whole = len(pairs) == len(estimated) and not any(trial.get("reused") for trial in estimated.values())
    if is_whole and "store_bytes" in document:
        read = sum(_bytes_read(metrics.get(record.trial, ())) for _, record in pairs)
        predicted = document["store_bytes"]
        found.append(Outcome(name="read from the store", unit="bytes", predicted=predicted, real=read))
    return found


def _bytes_read(logged: Sequence[Mapping[str, Any]]) -> float:
    """Return the bytes read, as logged by the trial's last attempt."""
    return next((record["data/bytes_read"] for record in reversed(logged) if "data/bytes_read" in record), 0.0)
