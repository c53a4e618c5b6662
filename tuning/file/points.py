"""The points of a sweep: what its axes, search, `exclude` and `include` make. A pure function of the sweep file."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

from lexray.storage.errors import UserError
from lexray.training.dictionaries import architecture
from lexray.tuning.file.axes import SITE_AXES, Point, Range, Values, check_count, grid
from lexray.tuning.file.rules import can_be_met, included, meets
from lexray.tuning.file.search import draws
from lexray.tuning.file.sweep_file import SweepFile

DRAWS_PER_TRIAL = 200
"""Draws in search of points that were not drawn before, until the axes are taken to have no more."""


def points_of(sweep: SweepFile) -> list[Point]:
    """Every point that the file names, in order: those of the axes, less those excluded, then those included.

    Of a search by Optuna these are the included ones alone: the others are chosen while the sweep runs. Raises
    UserError when there is none, one stands twice, or a condition plays no part.
    """
    for number, condition in enumerate(sweep.exclude, start=1):
        if not can_be_met(condition, sweep.axes):
            raise UserError(f"exclude: condition {number} ({condition}) matches no trial")
    points = _grid(sweep) if sweep.search.kind == "grid" else _drawn(sweep)
    if sweep.search.kind == "optuna":
        points = []  # the draws only showed that the axes have as many
    points += _included(sweep, points)
    for number, rule in enumerate(sweep.rules, start=1):
        possible = sweep.search.kind != "grid" and can_be_met(rule.when, sweep.axes)
        if not possible and not any(rule.matches(point) for point in points):
            raise UserError(f"rules: `when` of rule {number} ({rule.when}) matches no trial")
    return points


def _check_count(count: int, field: str) -> None:
    try:
        check_count(count)
    except ValueError as error:
        raise UserError(f"{field}: {error}") from error


def _grid(sweep: SweepFile) -> list[Point]:
    _check_count(math.prod(len(values) for values in sweep.axes.values() if isinstance(values, list)), "axes")
    points = grid({axis: values for axis, values in sweep.axes.items() if isinstance(values, list)})
    kept = [point for point in points if not is_excluded(sweep, point)]
    if not kept:
        raise UserError(f"exclude: removes all {len(points)} points of the axes, so there is no trial")
    return kept


def _drawn(sweep: SweepFile) -> list[Point]:
    wanted = sweep.search.trials or 0
    _check_count(wanted, "search.trials")
    found: dict[str, Point] = {}
    for point in itertools.islice(draws(sweep.axes, sweep.search.seed), DRAWS_PER_TRIAL * wanted):
        if not is_excluded(sweep, point):
            found.setdefault(key(effective(sweep, point)), point)
        if len(found) == wanted:
            return list(found.values())
    raise UserError(
        f"search.trials: {wanted}, but only {len(found)} different dictionaries were found in "
        f"{DRAWS_PER_TRIAL * wanted:,} draws; lower it, or give the axes more values"
    )


def corners(sweep: SweepFile) -> list[Point]:
    """The points of the axes with a smallest or a largest number on each, less those excluded; each dictionary once."""
    axes = {axis: _extremes(values) for axis, values in sweep.axes.items()}
    _check_count(math.prod(map(len, axes.values())), "axes")
    found: dict[str, Point] = {}
    for point in grid(axes):
        if not is_excluded(sweep, point):
            found.setdefault(key(effective(sweep, point)), point)
    return list(found.values()) or _drawn(sweep)[:1]


def _extremes(values: Values) -> list[Any]:
    """Both ends of a range or of listed numbers; everything else that is listed."""
    if isinstance(values, Range):
        return [values.at(0.0), values.at(1.0)]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return list(dict.fromkeys((min(values), max(values))))
    return list(values)


def is_excluded(sweep: SweepFile, point: Point) -> bool:
    """Whether a point of the axes is left out."""
    return any(meets(point, condition) for condition in sweep.exclude)


def _included(sweep: SweepFile, points: list[Point]) -> list[Point]:
    known = {key(effective(sweep, point)) for point in points}
    added: list[Point] = []
    for number, entry in enumerate(sweep.include, start=1):
        try:
            found = included(entry, sweep.axes)
        except ValueError as error:
            raise UserError(f"include: entry {number}: {error}") from error
        new = {name: point for point in found if (name := key(effective(sweep, point))) not in known}
        if not new:
            raise UserError(f"include: entry {number} ({entry}) adds no trial: those are there already")
        known |= set(new)
        added += new.values()
    return added


def effective(sweep: SweepFile, point: Point) -> Point:
    """The part of a point that decides its dictionary.

    An axis plays no part for an architecture without such an option, and where `options` or a rule fix its value.
    """
    name = point["architecture"]
    made = architecture(name)
    fixed = {*sweep.options.get(name, {})}
    for rule in sweep.rules:
        if rule.matches(point):
            fixed |= {*rule.set}
    if "width" in fixed:
        fixed.add("expansion")
    used = made.option_names(code_at(sweep, point)) | {"expansion", "seed", "lr", *SITE_AXES[made.kind]}
    kept = {axis: value for axis, value in point.items() if axis in used - fixed}
    if made.kind == "sae" and isinstance(kept.get("site"), dict):
        kept["site"] = kept["site"].get("input")
    return {"architecture": name, **kept}


def code_at(sweep: SweepFile, point: Point) -> str | None:
    """Return the kind of the code at a point; None is the architecture's default. Raises UserError."""
    made = architecture(point["architecture"])
    settings = [rule.set for rule in sweep.rules if rule.matches(point)]
    given = [sweep.options.get("all", {}), point, sweep.options.get(made.name, {}), *settings]
    chosen = [layer["code"] for layer in given if "code" in layer]
    if not chosen or len(made.codes) < 2:
        return None
    kind = chosen[-1].get("kind") if isinstance(chosen[-1], dict) else chosen[-1]
    made.code(kind)
    return kind


def key(point: Point) -> str:
    """The same for equal points only."""
    return json.dumps(point, sort_keys=True, default=str)


def shown(sweep: SweepFile, point: Point) -> list[str]:
    """Return the parts of a trial's name after architecture, width and target L0: whatever varies in the sweep."""
    said = {axis: value for axis, value in effective(sweep, point).items() if axis not in _IN_EVERY_NAME}
    return [f"{axis}{_text(value)}" for axis, value in said.items() if sweep.axes.get(axis) != [value]]


_IN_EVERY_NAME = ("architecture", "width", "expansion", "target_l0")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ">".join(map(str, value.values()))
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)
