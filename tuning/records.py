"""Builds the records (`trial.json`) of a trial at its start and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lexray.storage.errors import last_line
from lexray.training.loop.result import TrainingResult
from lexray.tuning.sweep_folder import DONE, MOVING, STOPPED, TARGET_MISSED, TrialRecord
from lexray.tuning.trials import Trial

TARGET_TOLERANCE = 0.1
"""Relative distance of L0 from its target above which a trial has missed it."""


def new_record(trial: Trial, *, status: str) -> TrialRecord:
    """Return the record of a trial without a result."""
    return TrialRecord(
        trial=trial.id,
        name=trial.name,
        config=trial.config.to_dict(),
        point=trial.point,
        number=trial.number,
        status=status,
        workers=trial.footprint.workers,
    )


def ended_record(
    record: TrialRecord, result: TrainingResult, total_s: float, *, stopped: Mapping[str, Any]
) -> TrialRecord:
    """Return the record of a trial whose training ended: done, stopped early, paused, or moving to other nodes.

    `stopped` is the decision that stopped it early, empty without one.
    """
    timing = {"total_s": total_s, "train_s": result.train_s}
    if result.train_s:
        timing["rows_per_s"] = result.steps * record.config["data"]["batch_rows"] / result.train_s
    record = replace(record, timing=timing)
    if result.ended == "paused" and result.reason == MOVING:
        return replace(record, status=MOVING)
    if result.ended == "paused":
        return replace(record, status=result.reason, reason="run the sweep again to go on from its checkpoint")
    if result.ended == "done":
        return finished_record(record, result)
    return replace(
        record,
        status=STOPPED,
        reason=result.reason,
        result=result.metrics,
        validation=result.validation,
        stopped=dict(stopped),
    )


def finished_record(record: TrialRecord, result: TrainingResult) -> TrialRecord:
    """Return the record of a trial that trained to its end; `target missed` if its L0 is too far off."""
    target, l0 = record.config["dictionary"]["target_l0"], result.metrics["l0"]
    missed = abs(l0 - target) > TARGET_TOLERANCE * target
    return replace(
        record,
        status=TARGET_MISSED if missed else DONE,
        reason=f"L0 is {l0:.1f}, the target {target:g}" if missed else "",
        result=result.metrics,
        validation=result.validation,
        curve=result.curve,
    )


def reason_of(error: BaseException) -> str:
    """Return the innermost cause of an error in one line."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return reason_of(failures[min(failures)])
    cause = getattr(error, "cause", None) or error.__cause__
    if isinstance(cause, BaseException):
        return reason_of(cause)
    return f"{type(error).__name__}: {last_line(str(error)) or 'no message'}"
