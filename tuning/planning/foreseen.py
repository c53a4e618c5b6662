"""What a sweep's plan foresaw, and what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lexray.storage.errors import CorruptDataError
from lexray.storage.store import Store
from lexray.tuning.sweep_folder import DONE, TARGET_MISSED, TrialRecord

PLAN_FILE = "plan.json"


def read_plan(store: Store) -> dict[str, Any] | None:
    """The document of `Plan.to_dict` as written, or None where no plan lies. Raises CorruptDataError."""
    try:
        content = store.read(PLAN_FILE)
    except FileNotFoundError:
        return None
    try:
        document = json.loads(content)
    except ValueError as error:
        raise CorruptDataError(f"{PLAN_FILE}: not valid JSON ({error}); remove it to go on without it") from error
    if not isinstance(document, dict):
        raise CorruptDataError(f"{PLAN_FILE}: not a plan; remove it to go on without it")
    return document


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One number as it was foreseen and as it was."""

    name: str
    unit: str
    """`bytes` or `seconds`."""
    predicted: float
    real: float

    @property
    def ratio(self) -> float:
        """Predicted over real."""
        return self.predicted / self.real if self.real else math.nan


def outcomes(
    document: Mapping[str, Any] | None,
    records: Sequence[TrialRecord],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Outcome]:
    """Memory, time and bytes of the trials trained to their end, as far as they were both foreseen and measured."""
    if document is None:
        return []
    foreseen = {trial["id"]: trial for trial in document["trials"]}
    pairs = [(foreseen[r.trial], r) for r in records if r.status in (DONE, TARGET_MISSED) and r.trial in foreseen]
    found = []
    peaks = [(p["memory"]["resident"], r.memory["peak_bytes"]) for p, r in pairs if r.memory.get("peak_bytes")]
    if peaks:
        largest = max(peaks, key=lambda pair: pair[1])
        found.append(Outcome(name="largest worker, peak", unit="bytes", predicted=largest[0], real=largest[1]))
    times = [(p["seconds"], r.timing["total_s"]) for p, r in pairs if p["seconds"] and r.timing.get("total_s")]
    if times:
        predicted, real = (sum(column) for column in zip(*times, strict=True))
        found.append(Outcome(name="wall time of the trials", unit="seconds", predicted=predicted, real=real))
    if len(pairs) == len(foreseen) and not any(trial["reused"] for trial in document["trials"]):
        read = sum(_bytes_read(metrics.get(record.trial, ())) for _, record in pairs)
        predicted = document["store_bytes"]
        found.append(Outcome(name="read from the store", unit="bytes", predicted=predicted, real=read))
    return found


def _bytes_read(logged: Sequence[Mapping[str, Any]]) -> float:
    """As the trial's last attempt counted them."""
    return next((record["data/bytes_read"] for record in reversed(logged) if "data/bytes_read" in record), 0.0)
