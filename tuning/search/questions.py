"""The questions of a sweep: FVUs are compared between dictionaries of the same sites, so each choice of sites has a
search of its own, and the trials are dealt to them evenly."""

from __future__ import annotations

from collections.abc import Mapping

from lexray.training.dictionaries import architecture
from lexray.tuning.file.axes import SITE_AXES, Point, Range, Values, grid
from lexray.tuning.file.points import effective, key
from lexray.tuning.file.sweep_file import SweepFile

Axes = Mapping[str, Values]

_SITES = tuple(dict.fromkeys(axis for axes in SITE_AXES.values() for axis in axes))


def questions(sweep: SweepFile) -> list[Axes]:
    """The axes of each question: those of the sweep, with one choice of sites and the architectures that read them."""
    listed = {
        axis: values
        for axis, values in sweep.axes.items()
        if axis in ("architecture", *_SITES) and not isinstance(values, Range)
    }
    sites: dict[str, Point] = {}
    names: dict[str, list[str]] = {}
    for point in grid(listed):
        name = point["architecture"]
        read = {axis: value for axis, value in effective(sweep, point).items() if axis in _SITES}
        question = key({"kind": architecture(name).kind, **read})
        sites.setdefault(question, {axis: value for axis, value in point.items() if axis in _SITES})
        if name not in names.setdefault(question, []):
            names[question].append(name)
    return [
        {**sweep.axes, **{axis: [value] for axis, value in point.items()}, "architecture": [*names[question]]}
        for question, point in sites.items()
    ]


def has_widths(axes: Axes) -> bool:
    """Whether dictionaries of several widths answer the question: a wider one is another price."""
    values = axes["width" if "width" in axes else "expansion"]
    return isinstance(values, Range) or len(values) > 1
