"""Compares two sweeps: dictionary by dictionary, and frontier by frontier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from lexray.training.identity.versions import BEFORE_VERSIONS, changed_training_defaults
from lexray.training.measures.documents import difference_error
from lexray.tuning.results.ties import UNKNOWN, FvuErrors
from lexray.tuning.sweep_folder import SweepFolder

FACTS = (
    "dataset_id",
    "inputs",
    "outputs",
    "held_out",
    "held_out_of",
    "seed",
    "lanes",
    "drop_special",
    "max_norm_ratio",
)
"""Fields of a trial's data that determine its evaluation rows."""
REPORTED_ON = "reported on"
"""Rows that results are of; not compared where a sweep has no results yet."""
NAMES_SHOWN = 3


def matched(
    first: pd.DataFrame, second: pd.DataFrame, errors: tuple[FvuErrors, FvuErrors] = (UNKNOWN, UNKNOWN)
) -> pd.DataFrame:
    """Match the trials of both frontier tables by name and sites, those of one alone too: `l0_1`, `fvu_1`, `l0_2`, ...

    `fvu_change` is FVU of the second over that of the first, less 1: below 0 the second is better, if its L0 is no
    larger. `change_error` is its standard error over test documents, NaN where a trial was not measured.
    """
    keys = ["name", "architecture", "sites", "width", "target_l0"]
    columns = [*keys, "trial", "l0", "fvu", "fvu_error", "status", "on_frontier"]
    both = pd.merge(first[columns], second[columns], on=keys, how="outer", suffixes=("_1", "_2"))
    both["fvu_change"] = both["fvu_2"] / both["fvu_1"] - 1
    both["change_error"] = [_change_error(row, errors) for row in both.to_dict("records")]
    return both.sort_values(["sites", "width", "target_l0", "architecture", "name"], ignore_index=True)


def _change_error(row: dict[Any, Any], errors: tuple[FvuErrors, FvuErrors]) -> float:
    sections = (
        found.section({name: row[f"{name}_{which}"] for name in ("trial", "fvu_error")})
        for which, found in enumerate(errors, start=1)
    )
    return difference_error(*sections) / float(row["fvu_1"])


def beaten_shares(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """For each width and sites of both tables: `beaten_1`, the share of the first's frontier that the second beats,
    `beaten_2` the other way round, and how many points each has.

    A point is beaten by one of no larger L0 and lower FVU. Of equal frontiers none beats any.
    """
    rows = []
    tables = [table[table["on_frontier"]].groupby(["sites", "width"]) for table in (first, second)]
    groups: list[dict[Any, pd.DataFrame]] = [dict(list(table)) for table in tables]
    for key in sorted(groups[0].keys() & groups[1].keys()):
        one, two = (group[key] for group in groups)
        sites, width = key
        rows.append({
            "sites": sites,
            "width": int(width),
            "points_1": len(one),
            "points_2": len(two),
            "beaten_1": _beaten(one, two),
            "beaten_2": _beaten(two, one),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["sites", "width", "points_1", "points_2", "beaten_1", "beaten_2"])


def _beaten(points: pd.DataFrame, others: pd.DataFrame) -> float:
    """Return the share of points that some other point beats."""
    l0, fvu = (points[name].to_numpy()[:, None] for name in ("l0", "fvu"))
    beaten = (others["l0"].to_numpy() <= l0) & (others["fvu"].to_numpy() < fvu)
    return float(np.mean(beaten.any(axis=1)))


def differences_of_data(first: SweepFolder, second: SweepFolder) -> list[str]:
    """Return the differences in the evaluation rows of two sweeps; with any, their numbers are not comparable."""
    facts = [_facts(folder) for folder in (first, second)]
    found = []
    for name in (*FACTS, REPORTED_ON):
        one, two = (sorted(all_of[name]) for all_of in facts)
        if one != two and (name != REPORTED_ON or (one and two)):
            found.append(f"{name}: {_listed(one)} against {_listed(two)}")
    return found


def _facts(folder: SweepFolder) -> dict[str, set[str]]:
    """Return the values of each field in the sweep's trials."""
    values: dict[str, set[str]] = {name: set() for name in (*FACTS, REPORTED_ON)}
    for trial in folder.store.list_folders("trials"):
        record = folder.read_trial(trial)
        data: dict[str, Any] = record.config.get("data", {}) if record is not None else {}
        if record is not None and record.result:
            values[REPORTED_ON].add(record.reported_on)
        data = {**changed_training_defaults(BEFORE_VERSIONS, "data"), **data} if data else data
        for name in FACTS:
            if name in data:
                values[name].add(_told(data[name]))
    return values


def _told(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def _listed(values: list[str]) -> str:
    shown = ", ".join(values[:NAMES_SHOWN]) or "nothing"
    return shown + (f" and {len(values) - NAMES_SHOWN} more" if len(values) > NAMES_SHOWN else "")
