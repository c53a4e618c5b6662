"""Recommends dictionaries of a sweep with reasons: one for each sparsity, never a single best.

FVU falls with L0 and width, so "the best" would be the least sparse and widest. Comparable are the dictionary that
is best at a sparsity by one criterion, and a narrower one that is nearly as good.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from lexray.storage.errors import UserError
from lexray.tuning.results.columns import COLUMNS, format_cell
from lexray.tuning.results.ties import UNKNOWN, FvuErrors
from lexray.tuning.sweep_folder import DONE, TARGET_MISSED

L0_TOLERANCE = 0.1
"""Relative distance of L0 from a target within which a dictionary counts for it."""
NEARLY = 0.05
"""Relative loss against the best within which a narrower dictionary is recommended."""
MANY_DEAD = 0.1
BEGAN_ALIKE = 0.8
"""Stability before training above which stability after it proves little."""
NAMES_SHOWN = 3
TOO_CLOSE = 0.01
"""Relative difference of two values below which one seed of each cannot distinguish them."""


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A column by which dictionaries are recommended."""

    column: str
    best: str
    """Name of its best value."""
    worse: str
    """Description of a value that is worse."""
    of_seeds: bool = False
    """Whether a value belongs to all seeds of a configuration, not to one trial."""

    def loss(self, values: Any, best: Any) -> Any:
        """Return how much worse `values` are than `best`, relative to `best`; from 0."""
        sign = -1 if COLUMNS[self.column].better == "higher" else 1
        return sign * (values - best) / (abs(best) or 1)


CRITERIA = {
    "fvu": Criterion(column="fvu", best="least FVU", worse="more FVU"),
    "bits": Criterion(column="bits", best="fewest bits per row", worse="more bits"),
    "stability": Criterion(
        column="stability", best="highest stability over seeds", worse="less stability", of_seeds=True
    ),
}


def criterion(name: str) -> Criterion:
    """Return a criterion by its name. Raises UserError for another name."""
    if name not in CRITERIA:
        raise UserError(f"--recommend-by: {name!r} is no criterion; choose one of {', '.join(CRITERIA)}")
    return CRITERIA[name]


class Recommendation(NamedTuple):
    """A dictionary with the reasons for it and its caveats."""

    trial: str
    name: str
    sites: str
    target_l0: float
    reasons: list[str]
    caveats: list[str]


def recommend(
    table: pd.DataFrame, by: Criterion = CRITERIA["fvu"], errors: FvuErrors = UNKNOWN
) -> list[Recommendation]:
    """Recommend from a frontier table, for each sites and target L0, the best by `by` and a narrower one near it.

    Of those whose FVU is tied with the best, by `errors`, it is the narrowest.
    """
    finished = table[table["status"].isin((DONE, TARGET_MISSED)) & table["fvu"].notna() & table[by.column].notna()]
    found: list[Recommendation] = []
    for sites, of_sites in finished.groupby("sites"):
        for target in sorted(of_sites["target_l0"].dropna().unique()):
            fitting = of_sites[of_sites["l0"] <= (1 + L0_TOLERANCE) * target]
            sparse_enough = fitting[fitting["l0"] >= (1 - L0_TOLERANCE) * target]
            if not sparse_enough.empty:
                found += _at(str(sites), float(target), sparse_enough, by, errors)
    return found


def _at(sites: str, target: float, fitting: pd.DataFrame, by: Criterion, errors: FvuErrors) -> Iterator[Recommendation]:
    """Yield the recommendations among dictionaries of one sparsity."""
    is_lower_better = COLUMNS[by.column].better == "lower"
    order = dict.fromkeys([by.column, "fvu", "width", "name"], True) | {by.column: is_lower_better}
    ranked = fitting.sort_values(list(order), ascending=list(order.values()))
    tied = _tied_with(ranked.iloc[0], ranked, by, errors)
    best = tied.sort_values("width", kind="stable").iloc[0]
    yield Recommendation(
        best["trial"], best["name"], sites, target, _reasons(best, ranked, tied, by), _caveats(best, ranked, tied, by)
    )
    near = by.loss(ranked[by.column], best[by.column]) <= NEARLY
    narrower = ranked[(ranked["width"] < best["width"]) & near]
    if not narrower.empty:
        smaller = narrower.sort_values("width", kind="stable").iloc[0]
        loss = by.loss(smaller[by.column], best[by.column])
        why = f"{smaller['width'] / best['width']:.0%} of the latents of {best['name']} for {loss:.1%} {by.worse}"
        caveats = _caveats(smaller, ranked, ranked.iloc[:0], by)
        yield Recommendation(smaller["trial"], smaller["name"], sites, target, [why], caveats)


def _tied_with(first: Any, ranked: pd.DataFrame, by: Criterion, errors: FvuErrors) -> pd.DataFrame:
    """Return the first row of `ranked` and those whose FVU is tied with its; other criteria have no standard error."""
    if by.column != "fvu":
        return ranked.iloc[:1]
    return ranked[[True, *(errors.tied(first, row) for row in ranked.iloc[1:].to_dict("records"))]]


def _reasons(best: Any, ranked: pd.DataFrame, tied: pd.DataFrame, by: Criterion) -> list[str]:
    value, target = format_cell(by.column, best[by.column]), f"{best['target_l0']:g}"
    if by.column == "fvu" and not math.isnan(best["fvu_error"]):
        value += f" ± {format_cell('fvu_error', best['fvu_error'])}"
    at_fvu = f" (at FVU {best['bits_at_fvu']:g})" if by.column == "bits" else ""
    if len(tied) > 1:
        others = [name for name in tied["name"] if name != best["name"]]
        what = f"narrowest of {len(tied)}" if tied["width"].nunique() > 1 else f"one of {len(tied)}"
        reasons = [f"{what} with the {by.best} of {len(ranked)} at L0 {target}: {value}"]
        return [*reasons, f"tied with {_listed(others)}: within two standard errors"]
    reasons = [f"{by.best} of {len(ranked)} at L0 {target}: {value}{at_fvu}"]
    others = ranked[ranked["architecture"] != best["architecture"]]
    if not others.empty:
        second = others.iloc[0]
        loss = by.loss(second[by.column], best[by.column])
        reasons.append(f"the best {second['architecture']} has {loss:.1%} {by.worse}")
    return reasons


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:NAMES_SHOWN])
    return shown if len(names) <= NAMES_SHOWN else f"{shown} and {len(names) - NAMES_SHOWN} more"


def _caveats(row: Any, ranked: pd.DataFrame, tied: pd.DataFrame, by: Criterion) -> list[str]:
    caveats = []
    if row["status"] == TARGET_MISSED:
        caveats.append(f"its L0 is {row['l0']:.1f}, not {row['target_l0']:g}")
    if row["dead_fraction"] > MANY_DEAD:
        caveats.append(f"{row['dead_fraction']:.0%} of its latents are dead")
    if by.of_seeds and row["stability_at_start"] > BEGAN_ALIKE:
        caveats.append(f"its seeds began alike ({row['stability_at_start']:.2f} before training)")
    rivals = ranked[~ranked["trial"].isin([row["trial"], *tied["trial"]]) & (ranked["width"] == row["width"])]
    close = rivals[by.loss(rivals[by.column], row[by.column]).abs() < TOO_CLOSE]
    if not close.empty and not by.of_seeds:
        caveats.append(f"{close.iloc[0]['name']} is within {TOO_CLOSE:.0%}: one seed of each does not tell them apart")
    return caveats
