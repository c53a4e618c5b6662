"""Overlays a frontier's picture with a link for each point to its row in the table, with the point's values as text.

Positions are those of matplotlib. Without scripts the browser shows their `<title>`; the page's script
shows the same text at once, on focus and on a tap too.
"""

from __future__ import annotations

import html

import pandas as pd
from matplotlib.figure import Figure

from lexray.storage.visible_text import visible
from lexray.tuning.results.columns import COLUMNS, FrontierAxes, format_cell

_POINTS_PER_INCH = 72
"""Units per inch of matplotlib's SVG."""


def hover_links(figure: Figure, points: pd.DataFrame, radius_pt: float, axes: FrontierAxes) -> str:
    """An SVG group of links to `#row-N`, N being the label of the row in `points`, of an already drawn figure; by x.

    `points` are rows of the frontier table that the figure shows; `radius_pt` is the radius of the pointer's target.
    """
    points = points.sort_values(list(axes))
    places = figure.axes[0].transData.transform(points[list(axes)].to_numpy(dtype="float64"))
    places = places / figure.dpi * _POINTS_PER_INCH
    height_pt = figure.get_figheight() * _POINTS_PER_INCH
    links = (
        f'<a href="#row-{index}"><title>{html.escape(visible(told(row, axes)))}</title>'
        f'<circle cx="{x:.1f}" cy="{height_pt - y:.1f}" r="{radius_pt:g}"/></a>'
        for (index, row), (x, y) in zip(points.iterrows(), places.tolist(), strict=True)
    )
    return f'<g class="points">{"".join(links)}</g>'


def told(row: pd.Series, axes: FrontierAxes) -> str:
    """Format a trial in three lines: its name; its values on both axes; L0, FVU or dead latents, and its status."""
    others = [name for name in ("l0", "fvu", "dead_fraction") if name not in axes]
    values, more = (
        ", ".join(f"{COLUMNS[name].heading} {format_cell(name, row[name])}" for name in names)
        for names in (axes, others)
    )
    return f"{row['name']}\n{values}\n{more}, {row['status']}"
