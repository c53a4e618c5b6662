"""Recommends dictionaries of a sweep with reasons: one for each sparsity, never a single best.

FVU falls with L0 and width, so "the best" would be the least sparse and widest. Comparable are the dictionary that
explains most at a sparsity, and a narrower one that explains nearly as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pandas as pd

from lexray.tuning.sweep_folder import DONE, TARGET_MISSED

L0_TOLERANCE = 0.1
"""Relative distance of L0 from a target within which a dictionary counts for it."""
NEARLY = 0.05
"""Relative excess of FVU over the least within which a narrower dictionary is recommended."""
MANY_DEAD = 0.1
TOO_CLOSE = 0.01
"""Relative difference of two FVUs below which one seed of each cannot distinguish them."""


class Recommendation(NamedTuple):
    """A dictionary with the reasons for it and its caveats."""

    trial: str
    name: str
    sites: str
    target_l0: float
    reasons: list[str]
    caveats: list[str]


def recommend(table: pd.DataFrame) -> list[Recommendation]:
    """Recommend from a frontier table, for each sites and target L0, the least FVU and a narrower one near it."""
    finished = table[table["status"].isin((DONE, TARGET_MISSED)) & table["fvu"].notna()]
    found: list[Recommendation] = []
    for sites, of_sites in finished.groupby("sites"):
        for target in sorted(of_sites["target_l0"].dropna().unique()):
            fitting = of_sites[of_sites["l0"] <= (1 + L0_TOLERANCE) * target]
            sparse_enough = fitting[fitting["l0"] >= (1 - L0_TOLERANCE) * target]
            if not sparse_enough.empty:
                found += _at(str(sites), float(target), sparse_enough.sort_values(["fvu", "width", "name"]))
    return found


def _at(sites: str, target: float, ranked: pd.DataFrame) -> Iterator[Recommendation]:
    """Yield the recommendations among dictionaries of one sparsity, sorted by FVU."""
    best = ranked.iloc[0]
    others = ranked[ranked["architecture"] != best["architecture"]]
    reasons = [f"least FVU of {len(ranked)} at L0 {target:g}: {best['fvu']:.4f}"]
    if not others.empty:
        second = others.iloc[0]
        reasons.append(f"{second['fvu'] / best['fvu'] - 1:.1%} below the best {second['architecture']}")
    yield Recommendation(best["trial"], best["name"], sites, target, reasons, _caveats(best, ranked))
    narrower = ranked[(ranked["width"] < best["width"]) & (ranked["fvu"] <= (1 + NEARLY) * best["fvu"])]
    if not narrower.empty:
        smaller = narrower.sort_values(["width", "fvu"]).iloc[0]
        why = (
            f"{smaller['width'] / best['width']:.0%} of the latents of {best['name']} "
            f"for {smaller['fvu'] / best['fvu'] - 1:.1%} more FVU"
        )
        yield Recommendation(smaller["trial"], smaller["name"], sites, target, [why], _caveats(smaller, ranked))


def _caveats(row: Any, ranked: pd.DataFrame) -> list[str]:
    caveats = []
    if row["status"] == TARGET_MISSED:
        caveats.append(f"its L0 is {row['l0']:.1f}, not {row['target_l0']:g}")
    if row["dead_fraction"] > MANY_DEAD:
        caveats.append(f"{row['dead_fraction']:.0%} of its latents are dead")
    rivals = ranked[(ranked["trial"] != row["trial"]) & (ranked["width"] == row["width"])]
    close = rivals[(rivals["fvu"] / row["fvu"] - 1).abs() < TOO_CLOSE]
    if not close.empty:
        caveats.append(f"{close.iloc[0]['name']} is within {TOO_CLOSE:.0%}: one seed of each does not tell them apart")
    return caveats
