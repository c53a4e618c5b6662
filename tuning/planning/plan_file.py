"""Writes the plan to a sweep's folder, and reads the speeds recorded there."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lexray.storage.store import Store
from lexray.tuning.planning.estimate import Speed, finished_speeds
from lexray.tuning.planning.outcome import PLAN_FILE, read_plan
from lexray.tuning.planning.plan import Plan
from lexray.tuning.sweep_folder import SweepFolder


def known_speeds(folder: SweepFolder, trials: Sequence[str]) -> dict[str, Speed]:
    """Return the speeds by kind: of finished trials, or else those that `lexray plan --measure` wrote to the folder."""
    measured = (read_plan(folder.store) or {}).get("speeds", {})
    stored = {kind: Speed(**speed) for kind, speed in measured.items() if speed["source"] == "measured"}
    return {**stored, **finished_speeds([folder.read_trial(trial) for trial in trials])}


def write_plan(store: Store, plan: Plan) -> None:
    """Write `plan.json`; keep the earlier plan's estimates of trials that have finished since."""
    document = plan.to_dict()
    earlier = {trial["id"]: trial for trial in (read_plan(store) or {}).get("trials", [])}
    document["trials"] = [
        {**earlier[trial["id"]], "reused": True} if trial["reused"] and trial["id"] in earlier else trial
        for trial in document["trials"]
    ]
    store.write(PLAN_FILE, json.dumps(document, indent=1).encode())
