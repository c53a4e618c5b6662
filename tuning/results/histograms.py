"""Draws a histogram of latents' firing rates as a small SVG in the style of `lexray.tuning.results.curves`."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from lexray.tuning.results.curves import BOX, Axis, short_number

_RAREST_LOG10 = -5
"""Start of the axis, so that trials are comparable; lower if a latent fired more rarely."""


def firing_svg(firing: Mapping[str, Any]) -> str:
    """Return an SVG of latents by the share of rows in which they fire, from `firing` of `measures.json`.

    Bars of dense latents have the class `dense`. "" if no latent fired.
    """
    bins = zip(pairwise(firing["log10_edges"]), firing["histogram"], strict=True)
    bars = [(low, high, count) for (low, high), count in bins if count]
    if not bars:
        return ""
    # The edges are logarithms already.
    across = Axis(min(_RAREST_LOG10, int(bars[0][0] // 1)), 0.0, BOX.left, BOX.right)
    up = Axis(0.0, 1.08 * max(count for _, _, count in bars), BOX.bottom, BOX.top)
    parts = [*_grid(across, up), *_bars(across, up, bars, firing["dense_above"])]
    label = html.escape(f"latents by the share of rows in which they fire: {caption(firing)}")
    return f'<svg viewBox="0 0 {BOX.width} {BOX.height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def caption(firing: Mapping[str, Any]) -> str:
    """Return a caption: `1.2% never, 0.5% in more than 10% of the rows`."""
    dense = f"{firing['dense_fraction']:.1%} in more than {firing['dense_above']:.0%} of the rows"
    return f"{firing['dead_fraction']:.1%} never, {dense}"


def _grid(across: Axis, up: Axis) -> Iterator[str]:
    for value in up.ticks():
        y = up.place([value])[0]
        yield f'<path class="grid" d="M{BOX.left} {y:.1f}H{BOX.right}"/>'
        yield f'<text x="{BOX.left - 5}" y="{y + 4:.1f}" text-anchor="end">{short_number(value)}</text>'
    yield f'<path class="axis" d="M{BOX.left} {BOX.bottom}H{BOX.right}"/>'
    for exponent in range(int(across.low), 1):
        x = across.place([exponent])[0]
        anchor = "end" if exponent == 0 else "middle"
        yield f'<text x="{x:.1f}" y="{BOX.height - 5}" text-anchor="{anchor}">{100 * 10.0**exponent:g}%</text>'


def _bars(across: Axis, up: Axis, bars: list[tuple[float, float, int]], dense_above: float) -> Iterator[str]:
    for low, high, count in bars:
        left, right = across.place([low, high]).tolist()
        y = up.place([count])[0]
        name = "bar dense" if 10.0**low >= dense_above * (1 - 1e-9) else "bar"
        yield f'<path class="{name}" d="M{left + 0.5:.1f} {BOX.bottom}V{y:.1f}H{right - 0.5:.1f}V{BOX.bottom}z"/>'
