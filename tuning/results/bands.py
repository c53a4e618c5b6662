"""Bands of a frontier's picture: the mean over seeds of each configuration, plus and minus two standard errors."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

from lexray.training.measures.documents import TIE_ERRORS
from lexray.tuning.results.columns import FrontierAxes
from lexray.tuning.sweep_folder import STOPPED

OPACITY = 0.18


def seed_bands(points: pd.DataFrame, over: FrontierAxes) -> pd.DataFrame:
    """Return a row for each configuration with two or more seeds: `x`, `y`, `error`, `seeds`, `target_l0`.

    `x` and `y` are means over seeds, `error` is the standard error of `y`.
    """
    finished = points[(points["status"] != STOPPED) & (points["configuration"] != "")]
    # A dictionary at another number of latents is a configuration of its own.
    groups = finished.groupby(["configuration", "target_l0"], as_index=False)
    found = groups.agg(x=(over.x, "mean"), y=(over.y, "mean"), error=(over.y, "sem"), seeds=(over.y, "count"))
    return found[found["seeds"] > 1].sort_values("x", ignore_index=True)


def draw_bands(axes: Axes, points: pd.DataFrame, colour: str, over: FrontierAxes) -> bool:
    """Draw the bands of one width and architecture; return whether there are any.

    Configurations that differ in their target L0 alone are joined; others get a bar each.
    """
    bands = seed_bands(points, over)
    if bands.empty:
        return False
    reach = TIE_ERRORS * bands["error"]
    if len(bands) > 1 and bands["target_l0"].is_unique:
        low, high = bands["y"] - reach, bands["y"] + reach
        axes.fill_between(bands["x"], low, high, color=colour, alpha=OPACITY, linewidth=0)
    else:
        axes.errorbar(bands["x"], bands["y"], reach, color=colour, linestyle="none", alpha=0.6, capsize=3)
    return True
