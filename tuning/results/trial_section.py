"""Section of the report for one trial: curves, firing histogram, files, configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lexray.training.checkpoint.saved import CONFIG, TENSORS
from lexray.training.measures.held_out import FIRED_FILE, MEASURES_FILE
from lexray.tuning.results.curves import CURVES, curve_svg
from lexray.tuning.results.frontier import COLUMNS, MEASURED, format_cell
from lexray.tuning.results.histograms import caption, firing_svg
from lexray.tuning.sweep_folder import FINISHED, STOPPED, TrialRecord


class TrialSection(NamedTuple):
    """Input of the report's template for one trial."""

    record: TrialRecord
    result: list[tuple[str, str]]
    config: list[tuple[str, str]]
    curves: list[tuple[str, str]]
    """Title and `<svg>`."""
    firing: tuple[str, str] | None
    """Caption and `<svg>`."""
    files: list[str]
    """Paths below the sweep's folder."""
    path: str | None
    """Path of the dictionary as a Python literal; None if there is none yet."""


def trial_section(
    place: str,
    record: TrialRecord,
    row: Mapping[Any, Any],
    logged: Sequence[Mapping[str, Any]],
    firing: Mapping[str, Any] | None,
) -> TrialSection:
    """Build the section of a trial in the sweep folder `place`, from its row in the frontier table, its log, and
    `firing` of its measures.
    """
    has_result = record.status in (*FINISHED, STOPPED)
    histogram = firing_svg(firing) if firing is not None else ""
    return TrialSection(
        record=record,
        result=[(COLUMNS[name].heading, format_cell(name, row[name])) for name in MEASURED] if has_result else [],
        config=list(flatten(record.config).items()),
        curves=_curves(record, logged),
        firing=(caption(firing), histogram) if firing is not None and histogram else None,
        files=_files(record, bool(logged), firing is not None),
        path=repr(f"{place}/trials/{record.trial}/dictionary") if has_result else None,
    )


def _curves(record: TrialRecord, logged: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    target = record.config.get("dictionary", {}).get("target_l0")
    drawn = [(curve.title, curve_svg(curve, logged, target if curve.title == "L0" else None)) for curve in CURVES]
    return [(title, svg) for title, svg in drawn if svg]


def _files(record: TrialRecord, has_log: bool, is_measured: bool) -> list[str]:
    names = ["trial.json"] if record.config else []
    names += ["metrics.jsonl"] if has_log else []
    names += [MEASURES_FILE, FIRED_FILE] if is_measured else []
    if record.status in (*FINISHED, STOPPED):
        names += [f"dictionary/{CONFIG}", f"dictionary/{TENSORS}"]
    return [f"trials/{record.trial}/{name}" for name in names]


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested values to text under dotted names: `{"optimizer": {"lr": 0.1}}` to `{"optimizer.lr": "0.1"}`."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat
