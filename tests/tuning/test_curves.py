"""Small curves: whatever was logged, they are well-formed, inside their box, and keep what a reader must not miss."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from lexray.tuning.results.curves import CURVES, MAX_POINTS, Axis, Curve, curve_svg, series, short_number

FVU = Curve(title="FVU", train="train/fvu", eval="eval/fvu")
VALUES = st.one_of(st.none(), st.floats(), st.integers(-1000, 1000))
RECORDS = st.lists(
    st.fixed_dictionaries({}, optional={"rows": st.integers(0, 10**12), "train/fvu": VALUES, "eval/fvu": VALUES}),
    max_size=8,
)


@settings(max_examples=300)
@example([{"rows": 0, "eval/fvu": None, "train/fvu": 0.0}], 5e-324)
@given(RECORDS, st.one_of(st.none(), st.floats(0, 1e5)))
def test_any_log_gives_a_picture_inside_its_box(records: list[dict[str, Any]], target: float | None) -> None:
    svg = curve_svg(FVU, records, target)
    if not svg:
        return
    root = ElementTree.fromstring(svg)
    for line in root.iter("polyline"):
        for x, y in re.findall(r"(\S+),(\S+)", line.attrib["points"]):
            assert 0 <= float(x) <= 320
            assert 0 <= float(y) <= 170
    assert "nan" not in svg


def test_a_log_without_the_metric_gives_nothing() -> None:
    assert curve_svg(FVU, []) == ""
    assert curve_svg(FVU, [{"step": 1, "rows": 5, "train/loss": 1.0}, {"step": 2, "train/fvu": 0.4}]) == ""


def test_a_single_record_is_a_point() -> None:
    assert curve_svg(FVU, [{"rows": 5, "eval/fvu": 0.4}]).count("<circle") == 1


def test_a_long_curve_keeps_its_ends_and_its_spike() -> None:
    records: list[dict[str, Any]] = [{"rows": row, "train/fvu": 0.5 + 0.1 * math.sin(row)} for row in range(5000)]
    records[3210]["train/fvu"] = 7.0
    rows, values = series(records, "train/fvu")
    assert len(rows) <= MAX_POINTS
    assert (rows[0], rows[-1]) == (0, 4999)
    assert (rows[values.argmax()], values.max()) == (3210, 7.0)
    assert (rows[1:] > rows[:-1]).all()


def test_the_target_is_drawn() -> None:
    svg = curve_svg(next(c for c in CURVES if c.title == "L0"), [{"rows": 1, "train/l0": 20}], 16.0)
    assert svg.count('class="target"') == 1


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e9))
def test_ticks_lie_inside_the_axis(low: float, span: float) -> None:
    axis = Axis(low, low + span, 0.0, 1.0)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 6
    assert all(-1e-6 <= place <= 1 + 1e-6 for place in axis.place(ticks).tolist())


def test_short_numbers() -> None:
    assert [short_number(v) for v in (0, 0.125, 999, 1200, 2.5e6, 3e9)] == ["0", "0.125", "999", "1.2k", "2.5M", "3G"]
