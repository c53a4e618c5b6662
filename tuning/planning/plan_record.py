"""The plan in a sweep's folder, and the speeds that a folder knows of."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lexray.storage.store import Store
from lexray.tuning.planning.forecast import Speed, finished_speeds
from lexray.tuning.planning.foreseen import PLAN_FILE, read_plan
from lexray.tuning.planning.plan import Plan
from lexray.tuning.sweep_folder import SweepFolder


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
