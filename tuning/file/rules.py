"""Rules for some trials of a sweep: other settings, excluded points, included points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lexray.storage.config_file import FileModel
from lexray.tuning.file.axes import Point, Range, Values, axis_values, check_count, grid

Condition = dict[str, Any]
"""Axis to value, or to a list of values: met by points that have one of each."""


class Rule(FileModel):
    """Trials that match `when` get `set` instead of the general values."""

    when: Condition
    """Axis to value, or to a list of values."""
    set: dict[str, Any]

    def matches(self, point: Point) -> bool:
        """Whether a point has all the values."""
        return meets(point, self.when)


def meets(point: Point, condition: Condition) -> bool:
    """Whether a point has a value of each axis that the condition names."""
    return all(axis in point and is_one_of(point[axis], wanted) for axis, wanted in condition.items())


def is_one_of(value: Any, wanted: Any) -> bool:
    """A value that is a list itself (the sites of a crosscoder) is compared whole, too."""
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def can_be_met(condition: Condition, axes: Mapping[str, Values]) -> bool:
    """Whether some point of the axes meets the condition."""
    return all(_can_be(axes.get(axis, []), wanted) for axis, wanted in condition.items())


def _can_be(values: Values, wanted: Any) -> bool:
    if isinstance(values, Range):
        numbers = wanted if isinstance(wanted, list) else [wanted]
        return any(isinstance(number, int | float) and values.low <= number <= values.high for number in numbers)
    return any(is_one_of(value, wanted) for value in values)


def included(entry: Condition, axes: Mapping[str, Values]) -> list[Point]:
    """The points that an entry of `include` adds: its values, with all values of the axes that it does not name.

    Raises ValueError where such an axis is a range, which has no values of its own.
    """
    instead = {"width": "expansion", "expansion": "width"}
    unnamed = {
        axis: values for axis, values in axes.items() if axis not in entry and instead.get(axis, axis) not in entry
    }
    named = {axis: axis_values(axis, value) for axis, value in entry.items()}
    for axis, values in {**unnamed, **named}.items():
        if isinstance(values, Range):
            raise ValueError(f"give {axis} a value; a range has none of its own")
    listed = {axis: values for axis, values in {**unnamed, **named}.items() if isinstance(values, list)}
    check_count(math.prod(map(len, listed.values())))
    return grid(listed)
