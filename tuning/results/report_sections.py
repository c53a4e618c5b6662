"""Sections of the report beside the frontier: recommendations, stability, the data, and one for each trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lexray.training.checkpoint.saved import CONFIG, TENSORS
from lexray.training.measures.held_out import FIRED_FILE, MEASURES_FILE
from lexray.tuning.results.columns import COLUMNS, OPTIONAL, RESULT, format_cell, heading
from lexray.tuning.results.curves import CURVES, caption, curve_svg, firing_svg, fvu_svg
from lexray.tuning.results.measured import Document
from lexray.tuning.results.provenance import told
from lexray.tuning.results.recommend import CRITERIA, Criterion, Recommendation, recommend
from lexray.tuning.results.ties import UNKNOWN, FvuErrors
from lexray.tuning.sweep_folder import FINISHED, STOPPED, TrialRecord

SHOWN = 40
"""Maximum number of recommendations: a sweep over many sites has some for each of them."""

DATA_SETTINGS = (
    "url", "dataset_id", "held_out", "held_out_of", "drop_special", "max_norm_ratio", "seed", "batch_rows",
)  # fmt: skip
"""Settings of the data that the report lists."""


class StableRow(NamedTuple):
    """Stability of the seeds of one configuration, as formatted numbers."""

    name: str
    seeds: int
    cells: list[str]
    """Stability, stability at the start, random floor, score, and dead latents of each seed."""
    chosen: bool
    """Whether this width was chosen by stability."""


class SeedMatrix(NamedTuple):
    """Similarity of the dictionaries of one configuration, for each pair of seeds."""

    name: str
    seeds: list[str]
    rows: list[list[str]]
    """Mean cosine of matched atoms; "" on the diagonal, "-" where it could not be computed."""


class Sections(NamedTuple):
    """Input of the report's template."""

    recommended: list[Recommendation]
    recommended_by: str
    """The criterion: `least FVU`."""
    not_shown: int
    stable: list[StableRow]
    matrices: list[SeedMatrix]
    """Only for more than two seeds: the single pair of two is the stability itself."""
    widths: list[tuple[str, str, str]]
    """Smaller in larger dictionary, the share found, the random floor."""
    data: list[tuple[str, str]]
    reported: str
    """Description of the rows that results are of."""


def sections(
    table: pd.DataFrame,
    records: Sequence[TrialRecord],
    stability: Mapping[str, Any] | None,
    dataset: Mapping[str, Any] | None = None,
    by: Criterion = CRITERIA["fvu"],
    errors: FvuErrors = UNKNOWN,
) -> Sections:
    """Build the sections from the frontier table, the trials' records and, if present, the documents of
    `lexray.tuning.results.stability` and `lexray.tuning.results.provenance`.

    Dictionaries are recommended by `by`; `errors` says which are tied.
    """
    found = recommend(table, by, errors)
    return Sections(
        recommended=found[:SHOWN],
        recommended_by=by.best,
        not_shown=max(0, len(found) - SHOWN),
        stable=_stable(stability or {}),
        matrices=_matrices(stability or {}, records),
        widths=[
            (f"{_about(row)} in {row['larger_width']}", f"{row['found']:.0%}", f"{row['floor']:.0%}")
            for row in (stability or {}).get("widths", [])
        ],
        data=_data(records) + (told(dataset) if dataset is not None else []),
        reported=_reported(records),
    )


def _stable(document: Mapping[str, Any]) -> list[StableRow]:
    chosen = {tuple(choice["trials"]) for choice in document.get("chosen", [])}
    return [
        StableRow(
            _about(row),
            len(row["trials"]),
            [_number(row[name]) for name in ("stability", "at_start", "floor", "score")] + [_dead(row["dead"])],
            tuple(row["trials"]) in chosen,
        )
        for row in document.get("seeds", [])
    ]


def _matrices(document: Mapping[str, Any], records: Sequence[TrialRecord]) -> list[SeedMatrix]:
    seed_of = {record.trial: str(record.config.get("seed", 0)) for record in records}
    numbers = document.get("numbers", {})

    def cell(one: str, other: str) -> str:
        if one == other:
            return ""
        found = numbers.get(f"end {one} {other}", numbers.get(f"end {other} {one}"))
        return _number(None if found is None else found[0])

    groups = [(_about(row), row["trials"]) for row in document.get("seeds", []) if len(row["trials"]) > 2]
    return [
        SeedMatrix(
            name, [seed_of.get(trial, trial) for trial in trials], [[cell(a, b) for b in trials] for a in trials]
        )
        for name, trials in groups
    ]


def _reported(records: Sequence[TrialRecord]) -> str:
    """Describe the rows that results are of: older versions had one held-out part for everything."""
    measured = [record for record in records if record.result]
    old = [record for record in measured if not record.validation]
    if not old:
        return "test rows, which nothing in training, stopping or the search has read"
    if len(old) == len(measured):
        return "held-out rows, which evaluations, stopping and the search have read too"
    return (
        f"test rows; {len(old)} of {len(measured)} trials are of an older version, on held-out rows that evaluations, "
        "stopping and the search have read too"
    )


def _about(row: Mapping[str, Any]) -> str:
    return f"{row['architecture']}, width {row['width']}, L0 {row['target_l0']:g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _dead(counts: Sequence[float | None]) -> str:
    return ", ".join("-" if count is None else f"{count:.0f}" for count in counts)


def _data(records: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    """Return the data settings of the trials with their values."""
    found: dict[str, list[str]] = {}
    for record in records:
        data = record.config.get("data", {})
        for name in DATA_SETTINGS:
            if name in data:
                value = data[name] if isinstance(data[name], str) else json.dumps(data[name])
                found.setdefault(name, [])
                if value not in found[name]:
                    found[name].append(value)
    return [(name, ", ".join(values)) for name, values in found.items()]


class TrialSection(NamedTuple):
    """Input of the report's template for one trial."""

    record: TrialRecord
    result: list[tuple[str, str]]
    config: list[tuple[str, str]]
    curves: list[tuple[str, str]]
    """Title and `<svg>`."""
    firing: tuple[str, str] | None
    """Caption and `<svg>`."""
    measures: list[tuple[str, str]]
    fvu_curve: tuple[str, str] | None
    """FVU against k: how its codes were made, and `<svg>`."""
    files: list[str]
    """Paths below the sweep's folder."""
    path: str | None
    """Path of the dictionary as a Python literal; None if there is none yet."""


def trial_section(
    place: str,
    record: TrialRecord,
    row: Mapping[Any, Any],
    logged: Sequence[Mapping[str, Any]],
    measures: Document | None,
    table: pd.DataFrame,
) -> TrialSection:
    """Build the section of a trial in the sweep folder `place`, from its row in the frontier table, its log, and its
    `measures.json`.
    """
    has_result = record.status in (*FINISHED, STOPPED)
    firing = measures["firing"] if measures is not None else None
    histogram = firing_svg(firing) if firing is not None else ""
    return TrialSection(
        record=record,
        result=[(COLUMNS[name].heading, format_cell(name, row[name])) for name in RESULT] if has_result else [],
        config=list(flatten(record.config).items()),
        curves=_curves(record, logged),
        firing=(caption(firing), histogram) if firing is not None and histogram else None,
        measures=[
            (heading(name, table, long=True), format_cell(name, row[name]))
            for name in OPTIONAL
            if not pd.isna(row[name])
        ],
        fvu_curve=_fvu_curve(measures),
        files=_files(record, bool(logged), firing is not None),
        path=repr(f"{place}/trials/{record.trial}/dictionary") if has_result else None,
    )


def _fvu_curve(measures: Document | None) -> tuple[str, str] | None:
    if measures is None or "curve" not in measures:
        return None
    curve = measures["curve"]
    svg = fvu_svg(curve["points"])
    how = "encoded with each k" if curve["method"] == "encode" else "the largest contributions of each row"
    return (how, svg) if svg else None


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
