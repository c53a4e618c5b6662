"""The table: who is on the frontier, what unfinished trials show, and that nothing is lost on the way to parquet."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lexray.storage.store import Store
from lexray.tuning.results.columns import COLUMNS, RESULT, format_cell
from lexray.tuning.results.frontier import (
    frontier_rich_table,
    frontier_table,
    non_dominated,
    read_frontier,
    write_frontier,
)
from lexray.tuning.search.asking import values_of
from lexray.tuning.sweep_folder import (
    DONE,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    STOPPED,
    TARGET_MISSED,
    SweepFolder,
    TrialRecord,
)

GRID = st.sampled_from([0.0, 0.5, 1.0, 2.0, 4.0, math.nan, math.inf])
POINTS = st.lists(st.tuples(GRID, GRID), max_size=12)


def record(trial: str, l0: float = 0.0, fvu: float | None = None, *, width: int = 1536, **fields: Any) -> TrialRecord:
    """A trial of width `width`, finished when it has a result."""
    fields = {"name": f"topk-{width}-{trial}", "status": DONE if fvu is not None else PENDING} | fields
    architecture = fields.pop("architecture", "topk")
    config = {"dictionary": {"architecture": architecture, "width": width, "target_l0": 16.0}}
    result = {} if fvu is None else {"l0": l0, "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": 0.125}
    timing = {"total_s": 100.0, "train_s": 80.0, "rows_per_s": 5000.0} if fvu is not None else {}
    return TrialRecord(trial=trial, config=config, result=result, timing=timing, **fields)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one != other


@given(POINTS)
def test_the_frontier_is_what_no_finite_point_beats(points: list[tuple[float, float]]) -> None:
    finite = [point for point in points if all(map(math.isfinite, point))]
    expected = [point in finite and not any(beats(other, point) for other in finite) for point in points]
    kept = non_dominated([point[0] for point in points], [point[1] for point in points])
    assert kept.tolist() == expected


@given(POINTS, st.randoms())
def test_the_frontier_does_not_depend_on_order(points: list[tuple[float, float]], random: Any) -> None:
    order = random.sample(range(len(points)), len(points))
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    kept = non_dominated(array[:, 0], array[:, 1])
    assert non_dominated(array[order, 0], array[order, 1]).tolist() == kept[order].tolist()


def test_a_result_without_meaning_is_null_on_disk_off_the_frontier_and_a_dash(tmp_path: Path) -> None:
    folder = SweepFolder(Store.at(str(tmp_path)))
    folder.write_trial(
        replace(record("a", 4, 0.5), result={"l0": 4.0, "fvu": math.nan, "explained_variance": math.nan})
    )
    written = json.loads((tmp_path / "trials/a/trial.json").read_text(), parse_constant=pytest.fail)
    assert written["result"] == {"l0": 4.0, "fvu": None, "explained_variance": None}
    known = folder.read_trial("a")
    assert known is not None
    table = frontier_table([known, record("b", 16, 0.4)])
    row = table[table["trial"] == "a"].iloc[0]
    assert not row["on_frontier"]
    assert (format_cell("fvu", row["fvu"]), format_cell("l0", row["l0"])) == ("-", "4.00")
    assert values_of(known, with_width=False) is None


def test_widths_do_not_compete() -> None:
    table = frontier_table([record("a", 16, 0.5), record("b", 16, 0.4), record("c", 16, 0.9, width=768)])
    assert dict(zip(table["trial"], table["on_frontier"], strict=True)) == {"a": False, "b": True, "c": True}


def test_rows_go_by_width_then_l0_then_architecture_and_unfinished_ones_last() -> None:
    records = [
        record("e", status=FAILED, reason="loss is NaN at step 3"),
        record("d", 32, 0.2),
        record("c", 16, 0.3, architecture="topk"),
        record("b", 16, 0.3, architecture="relu", status=TARGET_MISSED),
        record("f", 8, 0.6, width=6144),
        record("a", 8, 0.4),
    ]
    assert frontier_table(records)["trial"].tolist() == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize("status", [FAILED, PENDING, RUNNING])
def test_an_unfinished_trial_shows_no_result_and_beats_nobody(status: str) -> None:
    table = frontier_table([record("best", 1, 0.01, status=status), record("b", 16, 0.3)]).set_index("trial")
    assert table.loc["best", list(RESULT)].isna().all()
    assert table["on_frontier"].to_dict() == {"best": False, "b": True}
    assert [format_cell(name, table.loc["best", name]) for name in RESULT] == ["-"] * 4


@pytest.mark.parametrize(("l0", "fvu"), [(0.0, 0.9), (0.0, 1.0), (2.0, 1.0), (2.0, 1.7)])
def test_a_dictionary_that_explains_nothing_is_not_on_the_frontier(l0: float, fvu: float) -> None:
    table = frontier_table([record("dead", l0, fvu), record("b", 16, 0.3)]).set_index("trial")
    assert table["on_frontier"].to_dict() == {"dead": False, "b": True}


def test_a_finished_trial_with_nan_is_not_on_the_frontier() -> None:
    table = frontier_table([record("a", 16, math.nan)])
    assert table["on_frontier"].tolist() == [False]


def test_a_trial_without_a_configuration_is_a_row() -> None:
    table = frontier_table([TrialRecord(trial="a", name="a", config={}), record("b", 16, 0.3)])
    assert table["trial"].tolist() == ["b", "a"]
    assert format_cell("width", table["width"][1]) == "-"


@pytest.mark.parametrize("records", [[], [record("a", 16, 0.5), record("b", width=99), record("c", 3, math.nan)]])
def test_parquet_holds_the_table_exactly(tmp_path: Path, records: list[TrialRecord]) -> None:
    table, store = frontier_table(records), Store.at(str(tmp_path))
    write_frontier(store, table)
    again = read_frontier(store)
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert list(again.columns) == list(COLUMNS)


def test_reading_a_frontier_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_frontier(Store.at(str(tmp_path)))


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("width", 24576, "24576"),
        ("target_l0", 16.0, "16"),
        ("l0", 15.987, "15.99"),
        ("fvu", 0.31234, "0.3123"),
        ("fvu", 3e17, "3e+17"),
        ("fvu", math.inf, "inf"),
        ("fvu", math.nan, "-"),
        ("dead_fraction", 0.0321, "3.2%"),
        ("rows_per_s", 51234.6, "51235"),
        ("on_frontier", True, "yes"),
        ("on_frontier", False, ""),
    ],
)
def test_a_cell_is_printed(column: str, value: Any, text: str) -> None:
    assert format_cell(column, value) == text


def test_the_terminal_shows_every_number_in_100_columns_and_takes_names_literally() -> None:
    long = record("z", 123.45, 0.98765, width=1048576, name="batch_topk-1048576-l0-128-[red]lr-0.0003-seed-4[/red]")
    table = frontier_table(
        [record("a", 16, 0.5, name="[bold]x[/bold]"), long, record("m", 20, 0.4, status=TARGET_MISSED)]
    )
    console = Console(width=100, record=True, file=open("/dev/null", "w"), no_color=True)  # noqa: SIM115
    console.print(frontier_rich_table(table))
    lines = console.export_text().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 100
    assert any("[bold]x[/bold]" in line for line in lines)
    for row in table.to_dict("records"):
        cells = [
            format_cell(name, row[name]) for name in ("width", "target_l0", "l0", "fvu", "dead_fraction", "status")
        ]
        assert any(all(cell in line for cell in cells) for line in lines)


# Sites ------------------------------------------------------------------------------------------------------------


def test_trials_that_reconstruct_another_site_do_not_beat_each_other() -> None:
    reads = {"a": (["x"], []), "b": (["x"], ["y"]), "c": (["x", "y"], [])}
    records = []
    for number, (trial, (inputs, outputs)) in enumerate(reads.items()):
        made = record(trial, 4.0 - number, 0.4 - 0.1 * number)
        records.append(replace(made, config={**made.config, "data": {"inputs": inputs, "outputs": outputs}}))
    table = frontier_table(records).set_index("trial")
    assert table["on_frontier"].all()
    assert table["sites"].to_dict() == {"a": "x", "b": "x > y", "c": "x + y"}


# Curves -----------------------------------------------------------------------------------------------------------


def curve_point(k: float, fvu: float) -> dict[str, float]:
    return {"k": k, "l0": k - 0.5, "fvu": fvu, "explained_variance": 1 - fvu, "dead_fraction": 0.0}


def test_a_trial_that_works_at_several_k_has_a_row_for_each_of_them() -> None:
    hierarchical = record("a", 16.0, 0.2, curve=[curve_point(4, 0.5), curve_point(8, 0.3), curve_point(16, 0.2)])
    table = frontier_table([hierarchical, record("b", 8.0, 0.4)]).set_index("name")
    assert sorted(table.index) == ["topk-1536-a", "topk-1536-a@4", "topk-1536-a@8", "topk-1536-b"]
    assert table.loc["topk-1536-a@8", ["trial", "target_l0", "l0", "fvu"]].tolist() == ["a", 8.0, 7.5, 0.3]
    # The point at k = 8 beats the trial that was trained for it.
    assert table["on_frontier"].to_dict() == {name: not name.endswith("-b") for name in table.index}


def test_the_time_of_a_curve_is_counted_once() -> None:
    table = frontier_table([record("a", 16.0, 0.2, curve=[curve_point(4, 0.5), curve_point(8, 0.3)])])
    assert table["seconds"].sum() == 100.0


@pytest.mark.parametrize("status", [RUNNING, FAILED])
def test_an_unfinished_trial_has_no_curve(status: str) -> None:
    unfinished = record("a", 16.0, 0.2, status=status, curve=[curve_point(4, 0.5)])
    assert len(frontier_table([unfinished])) == 1


def test_a_trial_that_was_stopped_early_has_its_numbers_and_no_part_in_the_frontier() -> None:
    stopped = record("s", 8, 0.1, status=STOPPED, reason="asha, rung 1")
    table = frontier_table([record("a", 16, 0.3), stopped]).set_index("trial")
    assert (table.loc["s", "l0"], table.loc["s", "fvu"], table.loc["s", "status"]) == (8, 0.1, "stopped early")
    assert table["on_frontier"].to_dict() == {"a": True, "s": False}


@pytest.mark.parametrize("status", PAUSED)
def test_a_trial_that_is_to_go_on_has_no_numbers_yet(status: str) -> None:
    table = frontier_table([record("a", 16, 0.3), record("p", 8, 0.1, status=status)]).set_index("trial")
    assert math.isnan(table.loc["p", "fvu"])
    assert table["on_frontier"].to_dict() == {"a": True, "p": False}
