"""The results of a study as one table: mean and standard error over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from statistics import mean
from typing import Any

from rich.table import Table

from lexray.tuning.ground_truth.arms import BATCH_ROWS, STEPS
from lexray.tuning.ground_truth.estimates import estimate
from lexray.tuning.ground_truth.study import Result, StudyOptions

COLUMNS = {
    "cosine": "cosine",
    "f1": "F1",
    "r2": "R2",
    "l0": "L0",
    "parent_child": "parent-child",
    "across": "across",
    "within": "within",
    "identifiability": "accuracy",
    "identifiability_balanced": "balanced",
    "dead": "dead",
    "hull": "hull",
    "stability_at_start": "start",
    "stability": "stability",
    "stability_of_random": "random",
}
"""Metric to heading; a column that no result has is left out."""

LEGEND = (
    "Mean over seeds and its standard error. cosine: matched atoms and features (Hungarian). F1: a matched "
    "latent as detector of its feature. parent-child: learned cosine (truth 0). across, within: squared error of "
    "learned cosines of parents with children, of siblings. accuracy, balanced: identifiability. dead: share of "
    "latents that no unseen row activates, left out of stability: matched cosine between seeds; start: the same before "
    "the first step; random: of random directions. hull: cosine of a relaxed archetypal atom and its part in the hull."
)


def study_table(results: Sequence[Result]) -> Table:
    """One row for each arm of each world."""
    shown = {metric: heading for metric, heading in COLUMNS.items() if any(metric in r.values for r in results)}
    table = Table(title="Known ground truth", caption=LEGEND, box=None)
    table.add_column("world, true L0")
    table.add_column("dictionary")
    for heading in shown.values():
        table.add_column(heading, justify="right", no_wrap=True)
    previous = ""
    for result in results:
        new = result.world != previous
        if new and previous:
            table.add_section()
        world = f"{result.world}, {mean(result.values['true_l0']):.2f}" if new else ""
        table.add_row(world, result.arm, *(cell(metric, result.values.get(metric)) for metric in shown))
        previous = result.world
    return table


def cell(metric: str, values: Sequence[float] | None) -> str:
    """`mean ±standard error`, without the latter where there are too few seeds; nothing for a metric without values."""
    if not values:
        return ""
    found = estimate(metric, values)
    return f"{found.mean:.3f}" + (f" ±{found.error:.3f}" if isfinite(found.error) else "")


def study_document(results: Sequence[Result], options: StudyOptions) -> dict[str, Any]:
    """Return plain values: how much was trained, and every seed's own metrics."""
    found = [{"world": r.world, "dictionary": r.arm, "values": r.values} for r in results]
    return {"seeds": options.num_seeds, "steps": STEPS, "batch_rows": BATCH_ROWS, "results": found}
