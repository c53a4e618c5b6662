"""The frontier of a sweep as a picture: FVU against L0 by default, a line per width, a marker per architecture.

A line joins the trials of one width and architecture that no other of the two beats; beaten ones stand beside it.
"""

from __future__ import annotations

import math
import re
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from lexray.storage.documents import shortened
from lexray.storage.visible_text import visible
from lexray.tuning.results.bands import OPACITY, draw_bands
from lexray.tuning.results.columns import COLUMNS, L0_FVU, FrontierAxes, heading
from lexray.tuning.results.frontier import on_frontier
from lexray.tuning.results.hover import hover_links
from lexray.tuning.sweep_folder import FINISHED, STOPPED, TARGET_MISSED

WIDE_IN, NARROW_IN = (12.0, 8.0), (4.2, 5.6)
"""Inches: for a page or a slide, and for a phone."""

_DPI = 100
_PAPER, _INK = "#ffffff", "#14181d"
_MARKERS = "osD^v<>phdH8PX*+x1234|_."
# Every colour of the map has 3:1 contrast on white and on the report's dark ground.
_WIDTH_COLOURS = LinearSegmentedColormap.from_list("widths", ["#0e8794", "#3f76e4", "#9460e6", "#cf3f9f", "#d4500f"])
_LOG_FROM_RATIO = 30.0
_POWERS_OF_TWO = ("l0", "target_l0", "width", "workers")
"""Columns whose x axis is scaled by powers of two."""
_FAINT = 0.4
"""Opacity of trials that were stopped early."""
_CROWD = 60
"""More points than this are drawn smaller."""
_TINY, _ABSURD = 1e-30, 1e30
"""Beyond these a picture has no place for a number."""
_REACH, _CROWDED_REACH = 8.0, 5.0
"""Radius of a point's pointer target, in points of the picture."""


def frontier_figure(
    table: pd.DataFrame, *, size_in: tuple[float, float] = WIDE_IN, axes: FrontierAxes = L0_FVU
) -> bytes:
    """The picture as PNG, `size_in` inches at 100 dots each."""
    buffer = BytesIO()
    _draw(table, size_in, axes).savefig(buffer, format="png", dpi=_DPI, facecolor=_PAPER)
    return buffer.getvalue()


def frontier_vectors(table: pd.DataFrame, axes: FrontierAxes = L0_FVU) -> bytes:
    """The picture as a file of vectors (SVG), for papers and slides; its text stays text."""
    buffer = BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "frontier"}):
        _draw(table, WIDE_IN, axes).savefig(buffer, format="svg", facecolor=_PAPER, metadata={"Date": None})
    return buffer.getvalue()


def frontier_svg(
    table: pd.DataFrame,
    *,
    size_in: tuple[float, float] = WIDE_IN,
    prefix: str = "frontier",
    axes: FrontierAxes = L0_FVU,
) -> str:
    """The picture as an `<svg>` element for an HTML page: transparent, its ink the page's text colour, its points links
    to the rows `#row-N` of a table in the order of `table`.

    `prefix` is the class of the element, and keeps the ids of several pictures in one page apart.
    """
    buffer, figure = BytesIO(), _draw(table, size_in, axes)
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": prefix}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue().decode()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    # A style element inside the page would apply to the whole page.
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.S)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    points = _drawable(table, axes)
    if not points.empty:
        links = hover_links(figure, points, _REACH if len(points) <= _CROWD else _CROWDED_REACH, axes)
        svg = f"{svg[: svg.rindex('</svg>')]}{links}</svg>"
    what = f"{COLUMNS[axes.y].heading} against {COLUMNS[axes.x].heading}"
    label = f'role="group" aria-label="{what} of the finished trials"'
    return svg.replace("<svg", f'<svg class="{prefix}" style="stroke-linejoin: round" {label}', 1)


def width_colours(widths: list[int]) -> dict[int, str]:
    """A colour for each width, ordered along one colour map."""
    ordered = sorted(set(widths))
    positions = np.linspace(0, 1, len(ordered)) if len(ordered) > 1 else [0.25]
    return {width: to_hex(_WIDTH_COLOURS(float(at))) for width, at in zip(ordered, positions, strict=True)}


def _draw(table: pd.DataFrame, size_in: tuple[float, float], over: FrontierAxes) -> Figure:
    figure = Figure(figsize=size_in, layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
    axes = figure.add_subplot()
    points = _drawable(table, over)
    if points.empty:
        axes.set_axis_off()
        what = "has finished" if over == L0_FVU else f"has both {' and '.join(COLUMNS[n].heading for n in over)}"
        axes.text(0.5, 0.5, f"No trial {what} yet", ha="center", va="center", color=_INK, fontsize=16)
        return figure
    colours = width_colours([int(width) for width in points["width"]])
    points = points.assign(architecture=[_label(name) for name in points["architecture"]])
    architectures = sorted(points["architecture"].unique())
    markers = {name: _MARKERS[index % len(_MARKERS)] for index, name in enumerate(architectures)}
    narrow = size_in[0] < 6
    marker_size = 6.0 if narrow or len(points) > _CROWD else 8.0
    any_band = False
    for _, group in points.groupby(["width", "architecture"]):
        first = group.iloc[0]
        any_band |= draw_bands(axes, group, colours[int(first["width"])], over)
        _draw_group(axes, group, colours[int(first["width"])], markers[first["architecture"]], marker_size, over)
    _style(axes, points, narrow, over)
    finished = points.loc[points["status"] != STOPPED, "trial"].nunique()
    all_trials = table["trial"].nunique()
    title = f"{finished} of {all_trials} trials have a result"
    axes.set_title(title, loc="left", color=_INK, fontsize=10 if narrow else 13)
    any_missed, any_stopped = (bool((points["status"] == status).any()) for status in (TARGET_MISSED, STOPPED))
    notes: list[Artist] = [_shape("o", "hollow: target missed", "none")] if any_missed else []
    notes += [_shape("o", "faint: stopped early", _INK, _FAINT)] if any_stopped else []
    notes += [Patch(color=_INK, alpha=OPACITY, label="band: seeds ± 2 s.e.")] if any_band else []
    _add_legend(figure, colours, markers, notes, narrow)
    return figure


def _drawable(table: pd.DataFrame, over: FrontierAxes) -> pd.DataFrame:
    having = table[table["status"].isin((*FINISHED, STOPPED)) & table["width"].notna()]
    having = having.astype(dict.fromkeys(over, "float64"))
    # A dictionary without any active latent has no place on a logarithmic axis.
    lowest = _TINY if over.x in _POWERS_OF_TWO else -_ABSURD
    can_be = (having[over.x] > lowest) & (having[over.x] < _ABSURD) & (having[over.y].abs() < _ABSURD)
    return having[can_be]


def _draw_group(
    axes: Axes, group: pd.DataFrame, colour: str, marker: str, marker_size: float, over: FrontierAxes
) -> None:
    stopped = group[group["status"] == STOPPED]
    faint: dict[str, Any] = {"color": colour, "markersize": marker_size * 0.7, "alpha": _FAINT, "linestyle": "none"}
    axes.plot(stopped[over.x], stopped[over.y], marker=marker, **faint)
    group = group[group["status"] != STOPPED]
    best = group[on_frontier(group, over)].sort_values(over.x)
    axes.plot(best[over.x], best[over.y], color=colour, linewidth=marker_size / 4.5, alpha=0.85)
    missed = group["status"] == TARGET_MISSED
    for rows, face in ((group[~missed], colour), (group[missed], "none")):
        style: dict[str, Any] = {
            "color": colour,
            "markerfacecolor": face,
            "markeredgewidth": 1.3,
            "markersize": marker_size,
        }
        axes.plot(rows[over.x], rows[over.y], marker, **style)


def _style(axes: Axes, points: pd.DataFrame, narrow: bool, over: FrontierAxes) -> None:
    size = 9 if narrow else 13
    if over.x in _POWERS_OF_TWO:
        _scale_by_two(axes, points[over.x], narrow)
    elif _is_wide(points[over.x]):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    if _is_wide(points[over.y]):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(heading(over.x, points, long=True), color=_INK, fontsize=size)
    axes.set_ylabel(heading(over.y, points, long=True), color=_INK, fontsize=size)
    axes.tick_params(colors=_INK, labelsize=size - 1)
    axes.grid(color=_INK, alpha=0.14, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)


def _scale_by_two(axes: Axes, values: pd.Series, narrow: bool) -> None:
    """Scale the x axis by powers of two."""
    axes.set_xscale("log", base=2)
    low, high = math.log2(values.min()), math.log2(values.max())
    margin = max(0.06 * (high - low), 0.25)
    axes.set_xlim(2 ** (low - margin), 2 ** (high + margin))
    if high - low < 1.5:
        # Powers of two alone could leave such a short axis without a single number.
        axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1, 1.25, 1.5, 1.75), numticks=14))
    else:
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=6 if narrow else 14))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))


def _is_wide(values: pd.Series) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() > _LOG_FROM_RATIO)


def _add_legend(
    figure: Figure, colours: dict[int, str], markers: dict[str, str], notes: list[Artist], narrow: bool
) -> None:
    widths: list[Artist] = [_heading("width")]
    widths += [Line2D([], [], color=colour, linewidth=3, label=str(width)) for width, colour in colours.items()]
    shapes: list[Artist] = [_heading("architecture")]
    shapes += [_shape(marker, name, _INK) for name, marker in markers.items()]
    shapes += notes
    if narrow:
        # Two columns of one length: a legend fills its columns one after the other.
        length = max(len(widths), len(shapes))
        for group in (widths, shapes):
            group += [_heading("")] * (length - len(group))
    entries = widths + ([] if narrow else [_heading("")]) + shapes
    legend = figure.legend(
        handles=entries,
        loc="outside lower center" if narrow else "outside right center",
        ncols=2 if narrow else 1,
        fontsize=8 if narrow or len(entries) > 26 else 12,
        frameon=False,
        labelcolor=_INK,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # an architecture of somebody else's may be called $x$
        if text.get_text() in ("width", "architecture"):
            text.set_fontweight("bold")


def _label(name: str) -> str:
    """An architecture in a legend, which leaves out names that begin with an underscore; ours are ASCII."""
    shown = shortened(" ".join(visible(name).split()).encode("ascii", "replace").decode(), 40)
    return f" {shown}" if shown.startswith("_") else shown


def _heading(text: str) -> Line2D:
    return Line2D([], [], linestyle="none", label=text)


def _shape(marker: str, label: str, face: str, alpha: float = 1.0) -> Line2D:
    style: dict[str, Any] = {"color": _INK, "markerfacecolor": face, "markersize": 8, "alpha": alpha}
    return Line2D([], [], linestyle="none", marker=marker, label=label, **style)
