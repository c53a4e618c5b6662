"""Small pictures of a trial's metrics over rows, as plain `<svg>` text that takes its colours from the page's CSS.

A report may show thousands of them, which is why they are written here and not by matplotlib. The classes are `grid`,
`axis`, `target`, `train`, `eval` and `point`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_POINTS = 200
"""A longer curve keeps its ends and the extremes between them."""


class Box(NamedTuple):
    """Size of a small picture, and the sides of its axes in it; pixels at its own size."""

    width: int = 320
    height: int = 170
    left: int = 46
    right: int = 312
    top: int = 8
    bottom: int = 148


BOX = Box()
_LOG_FROM_RATIO = 20.0
_FLAT_BELOW = 0.02
_ABSURD = 1e30
_RAREST_LOG10 = -5
"""Start of a histogram's axis, so that trials are comparable; lower if a latent fired more rarely."""
_TINY = 1 / _ABSURD
"""Numbers so small that a quarter of them is none."""
_DECADE_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)

Points = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One small picture: its title and the names of its series in the records of `metrics.jsonl`."""

    title: str
    train: str | None = None
    eval: str | None = None
    percent: bool = False


CURVES = (
    Curve(title="FVU", train="train/fvu", eval="eval/fvu"),
    Curve(title="L0", train="train/l0", eval="eval/l0"),
    Curve(title="loss", train="train/loss", eval="eval/loss"),
    Curve(title="dead latents", train="train/dead_fraction", eval="eval/dead_fraction", percent=True),
    Curve(title="rows/s", train="perf/rows_per_s"),
)


@dataclass(frozen=True)
class Axis:
    """From values to places between `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        low, high, at = self.low, self.high, np.asarray(values, dtype=np.float64)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), np.log10(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Two to five round values inside the axis (a short logarithmic axis shows its ends)."""
        if self.log:
            return _decades(self.low, self.high)
        rough = (self.high - self.low) / 4
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(s * magnitude for s in _DECADE_STEPS if s * magnitude >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [10.0**exponent for exponent in exponents]
    return ticks[:: math.ceil(len(ticks) / 5)] if len(ticks) > 1 else [low, high]


def series(records: Sequence[Mapping[str, Any]], name: str | None) -> Points:
    """Rows and values of the metric `name`, at most `MAX_POINTS`; what is not finite, or absurd, is left out."""
    pairs = [(r["rows"], r[name]) for r in records if name in r and "rows" in r and r[name] is not None] if name else []
    points = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    points = points[(np.abs(points) < _ABSURD).all(axis=1)]
    points[np.abs(points) < _TINY] = 0.0
    if len(points) > MAX_POINTS:
        points = points[_kept(points[:, 1])]
    return points[:, 0], points[:, 1]


def _kept(values: npt.NDArray[np.float64]) -> list[int]:
    kept = {0, len(values) - 1}
    for part in np.array_split(np.arange(len(values)), MAX_POINTS // 2 - 1):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    return sorted(kept)


def curve_svg(curve: Curve, records: Sequence[Mapping[str, Any]], target: float | None = None) -> str:
    """The picture as an `<svg>` element, "" when the records hold none of its series. `target` is a dashed line."""
    lines = {"train": series(records, curve.train), "eval": series(records, curve.eval)}
    lines = {name: points for name, points in lines.items() if len(points[0])}
    if not lines:
        return ""
    if target is not None and abs(target) < _TINY:
        target = 0.0
    rows = np.concatenate([points[0] for points in lines.values()])
    values = np.concatenate([points[1] for points in lines.values()] + ([[target]] if target is not None else []))
    across = Axis(0.0, max(float(rows.max()), 1.0), BOX.left, BOX.right)
    up = _value_axis(values)
    parts = [*_grid(across, up, curve.percent)]
    if target is not None:
        y = up.place([target])[0]
        parts.append(f'<path class="target" d="M{BOX.left} {y:.1f}H{BOX.right}"/>')
    parts += [_line(name, across.place(points[0]), up.place(points[1])) for name, points in lines.items()]
    return _svg(f"{curve.title} over rows" + (", logarithmic" if up.log else ""), parts)


def _value_axis(values: npt.NDArray[np.float64]) -> Axis:
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > _LOG_FROM_RATIO:
        return Axis(low / 1.1, high * 1.1, BOX.bottom, BOX.top, log=True)
    # A flat line stands inside an axis whose three-digit numbers still differ.
    margin = 0.06 * (high - low) if high - low > _FLAT_BELOW * abs(high) else 0.1 * abs(high) or 1.0
    return Axis(low - margin if low < 0 or low > margin else 0.0, high + margin, BOX.bottom, BOX.top)


def _grid(across: Axis, up: Axis, percent: bool) -> Iterator[str]:
    yield from _values_grid(up, (lambda value: f"{value * 100:.3g}%") if percent else short_number)
    for value in across.ticks():
        x = across.place([value])[0]
        # The last number would be cut at the edge if it stood centred.
        yield _number_below(x, short_number(value), is_last=x > BOX.right - 14)


def _values_grid(up: Axis, shown: Callable[[float], str]) -> Iterator[str]:
    """Yield a line across the picture, and its number, for each tick of `up`; then the line of the axis below."""
    for value in up.ticks():
        y = up.place([value])[0]
        yield f'<path class="grid" d="M{BOX.left} {y:.1f}H{BOX.right}"/>'
        yield f'<text x="{BOX.left - 5}" y="{y + 4:.1f}" text-anchor="end">{shown(value)}</text>'
    yield f'<path class="axis" d="M{BOX.left} {BOX.bottom}H{BOX.right}"/>'


def _number_below(x: float, text: str, *, is_last: bool) -> str:
    return f'<text x="{x:.1f}" y="{BOX.height - 5}" text-anchor="{"end" if is_last else "middle"}">{text}</text>'


def _svg(label: str, parts: Iterable[str]) -> str:
    box = f'viewBox="0 0 {BOX.width} {BOX.height}"'
    return f'<svg {box} role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def _line(name: str, x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> str:
    if len(x) == 1:
        return f'<circle class="{name} point" cx="{x[0]:.1f}" cy="{y[0]:.1f}" r="3"/>'
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return f'<polyline class="{name}" points="{points}"/>'


def short_number(value: float) -> str:
    """`1200000` as `1.2M`, at most four characters of digits."""
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


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
    numbers = [
        _number_below(across.place([power])[0], f"{100 * 10.0**power:g}%", is_last=power == 0)
        for power in range(int(across.low), 1)
    ]
    parts = [*_values_grid(up, short_number), *numbers, *_bars(across, up, bars, firing["dense_above"])]
    return _svg(f"latents by the share of rows in which they fire: {caption(firing)}", parts)


def fvu_svg(points: Sequence[Mapping[str, Any]]) -> str:
    """Return an SVG of FVU against k, logarithmic, from the points of `curve` of `measures.json`.

    The code as it is at inference, which has no k, stands at its L0. "" with fewer than two points.
    """
    pairs = [(point["l0"] if point["k"] is None else point["k"], point["fvu"]) for point in points]
    found = sorted((k, fvu) for k, fvu in pairs if k and fvu is not None and _TINY < k < _ABSURD and abs(fvu) < _ABSURD)
    if len(found) < 2 or found[0][0] == found[-1][0]:
        return ""
    k, fvu = np.array(found, dtype=np.float64).T
    across = Axis(float(k[0]) / 1.1, float(k[-1]) * 1.1, BOX.left, BOX.right, log=True)
    up = _value_axis(fvu)
    numbers = [
        _number_below(x, short_number(value), is_last=x > BOX.right - 14)
        for value, x in zip(k.tolist(), across.place(k).tolist(), strict=True)
    ]
    parts = [*_values_grid(up, short_number), *numbers, _line("eval", across.place(k), up.place(fvu))]
    return _svg("FVU against k, logarithmic", parts)


def caption(firing: Mapping[str, Any]) -> str:
    """Return a caption: `1.2% never, 0.5% in more than 10% of the rows`."""
    dense = f"{firing['dense_fraction']:.1%} in more than {firing['dense_above']:.0%} of the rows"
    return f"{firing['dead_fraction']:.1%} never, {dense}"


def _bars(across: Axis, up: Axis, bars: list[tuple[float, float, int]], dense_above: float) -> Iterator[str]:
    for low, high, count in bars:
        left, right = across.place([low, high]).tolist()
        y = up.place([count])[0]
        name = "bar dense" if 10.0**low >= dense_above * (1 - 1e-9) else "bar"
        yield f'<path class="{name}" d="M{left + 0.5:.1f} {BOX.bottom}V{y:.1f}H{right - 0.5:.1f}V{BOX.bottom}z"/>'
