"""Splits a sweep's axes into subspaces, one for each choice of sites: FVUs are only comparable on the same sites.

Each subspace is searched separately, and trials are dealt to them evenly.
"""

from __future__ import annotations

from collections.abc import Mapping

from lexray.training.dictionaries import architecture
from lexray.tuning.file.axes import SITE_AXES, Point, Range, Values, grid
from lexray.tuning.file.points import effective, key
from lexray.tuning.file.sweep_file import SweepFile

Axes = Mapping[str, Values]

_SITES = tuple(dict.fromkeys(axis for axes in SITE_AXES.values() for axis in axes))


def subspaces(sweep: SweepFile) -> list[Axes]:
    """Return the axes of each subspace: those of the sweep, with one choice of sites and the architectures for them."""
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
        subspace = key({"kind": architecture(name).kind, **read})
        sites.setdefault(subspace, {axis: value for axis, value in point.items() if axis in _SITES})
        if name not in names.setdefault(subspace, []):
            names[subspace].append(name)
    return [
        {**sweep.axes, **{axis: [value] for axis, value in point.items()}, "architecture": [*names[subspace]]}
        for subspace, point in sites.items()
    ]


def has_widths(axes: Axes) -> bool:
    """Return whether the subspace has several widths, which differ in cost."""
    values = axes["width" if "width" in axes else "expansion"]
    return isinstance(values, Range) or len(values) > 1
