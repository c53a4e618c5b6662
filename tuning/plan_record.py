"""The plan in a sweep's folder: what was foreseen is kept beside what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.errors import CorruptDataError
from storage.store import Store
from tuning.forecast import Speed, finished_speeds
from tuning.plan import PLAN_FILE, Plan
from tuning.sweep_folder import FINISHED, SweepFolder, TrialRecord


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


def known_speeds(folder: SweepFolder, trials: Sequence[str]) -> dict[str, Speed]:
    """Speeds by kind: of trials that finished, else as `lexray plan --measure` left them in the folder."""
    measured = (read_plan(folder.store) or {}).get("speeds", {})
    stored = {kind: Speed(**speed) for kind, speed in measured.items() if speed["source"] == "measured"}
    return {**stored, **finished_speeds([folder.read_trial(trial) for trial in trials])}


def write_plan(store: Store, plan: Plan) -> None:
    """Write `plan.json`. What an earlier plan foresaw of a trial that is finished by now stays."""
    document = plan.to_dict()
    earlier = {trial["id"]: trial for trial in (read_plan(store) or {}).get("trials", [])}
    document["trials"] = [
        {**earlier[trial["id"]], "reused": True} if trial["reused"] and trial["id"] in earlier else trial
        for trial in document["trials"]
    ]
    store.write(PLAN_FILE, json.dumps(document, indent=1).encode())


@dataclass(frozen=True, kw_only=True)
class Comparison:
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


def comparisons(
    document: Mapping[str, Any] | None,
    records: Sequence[TrialRecord],
    metrics: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[Comparison]:
    """Memory, time and bytes of the finished trials, as far as they were both foreseen and measured."""
    if document is None:
        return []
    foreseen = {trial["id"]: trial for trial in document["trials"]}
    pairs = [(foreseen[r.trial], r) for r in records if r.status in FINISHED and r.trial in foreseen]
    found = []
    peaks = [(p["memory"]["resident"], r.memory["peak_bytes"]) for p, r in pairs if r.memory.get("peak_bytes")]
    if peaks:
        largest = max(peaks, key=lambda pair: pair[1])
        found.append(Comparison(name="largest worker, peak", unit="bytes", predicted=largest[0], real=largest[1]))
    times = [(p["seconds"], r.timing["total_s"]) for p, r in pairs if p["seconds"] and r.timing.get("total_s")]
    if times:
        predicted, real = (sum(column) for column in zip(*times, strict=True))
        found.append(Comparison(name="wall time of the trials", unit="seconds", predicted=predicted, real=real))
    if len(pairs) == len(foreseen) and not any(trial["reused"] for trial in document["trials"]):
        read = sum(_bytes_read(metrics.get(record.trial, ())) for _, record in pairs)
        predicted = document["store_bytes"]
        found.append(Comparison(name="read from the store", unit="bytes", predicted=predicted, real=read))
    return found


def _bytes_read(logged: Sequence[Mapping[str, Any]]) -> float:
    """As the trial's last attempt counted them."""
    return next((record["data/bytes_read"] for record in reversed(logged) if "data/bytes_read" in record), 0.0)
