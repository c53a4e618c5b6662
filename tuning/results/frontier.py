"""The frontier of a sweep as a table: a row per trial, and the trials that no other of their width beats.

The table is what `frontier.parquet`, `report.html` and the terminal show; all three print through `format_cell`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from lexray.storage.store import Store
from lexray.storage.visible_text import spreadsheet_cell
from lexray.tuning.sweep_folder import DONE, FAILED, FINISHED, PAUSED, STOPPED, TARGET_MISSED, TrialRecord

FRONTIER_FILE = "frontier.parquet"


class Column(NamedTuple):
    """A column of the table."""

    dtype: str
    heading: str
    """Its name in the report and on the terminal."""
    format: str = ""
    """Format of its numbers."""

    @property
    def is_text(self) -> bool:
        """Whether it holds words, which are aligned left."""
        return self.dtype in ("str", "bool")


COLUMNS = {
    "trial": Column("str", "trial"),
    "name": Column("str", "name"),
    "architecture": Column("str", "architecture"),
    "sites": Column("str", "sites"),
    "width": Column("Int64", "width", ".0f"),
    "target_l0": Column("float64", "target", ".6g"),
    "l0": Column("float64", "L0", ".2f"),
    "fvu": Column("float64", "FVU", ".4f"),
    "explained_variance": Column("float64", "EV", ".4f"),
    "dead_fraction": Column("float64", "dead", ".1%"),
    "status": Column("str", "status"),
    "reason": Column("str", "reason"),
    "workers": Column("int64", "workers", ".0f"),
    "seconds": Column("float64", "seconds", ".1f"),
    "rows_per_s": Column("float64", "rows/s", ".0f"),
    "on_frontier": Column("bool", "frontier"),
}
"""`sites` are those read and, after an arrow, those reconstructed if others. Fractions are in 0..1; width is missing
only for a trial whose record was never written."""

MEASURED = ("l0", "fvu", "explained_variance", "dead_fraction")
"""Columns of the result on test rows: NaN until the trial is finished, or stopped early."""

MISSING = "-"
_STATUS_STYLES = {
    DONE: "green",
    TARGET_MISSED: "yellow",
    FAILED: "red",
    STOPPED: "cyan",
    **dict.fromkeys(PAUSED, "yellow"),
}
_TERMINAL_COLUMNS = ("width", "target_l0", "l0", "fvu", "dead_fraction", "status", "on_frontier")


def non_dominated(l0: npt.ArrayLike, fvu: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Return the mask of non-dominated points: no other is at most as large in both `l0` and `fvu` and smaller in one.

    Equal points do not dominate each other. A point with a non-finite value neither dominates nor is on the frontier.
    """
    x, y = np.asarray(l0, dtype=np.float64), np.asarray(fvu, dtype=np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    kept = np.zeros(x.shape, dtype=np.bool_)
    best = best_l0 = math.inf
    for index in np.lexsort((y, x)):
        if not finite[index]:
            continue
        if y[index] < best:
            best, best_l0 = y[index], x[index]
        kept[index] = y[index] == best and x[index] == best_l0
    return kept


def on_frontier(rows: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return the mask of rows that no other beats; rows of L0 0, or of FVU 1 or more, are excluded."""
    return non_dominated(rows["l0"], rows["fvu"].where((rows["l0"] > 0) & (rows["fvu"] < 1)))


def frontier_table(records: list[TrialRecord]) -> pd.DataFrame:
    """Return one row per trial with the columns `COLUMNS`, by width, L0 and architecture; unfinished trials last.

    A trial whose dictionary works at several numbers of active latents has a further row for each, `NAME@K`.
    `on_frontier` compares finished trials of the same width and sites only: other widths have another cost, other sites
    are another task. Trials that were stopped early have metrics, but are not on the frontier.
    """
    rows = [row for record in records for row in (_row(record), *_curve_rows(record))]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({name: column.dtype for name, column in COLUMNS.items()})
    for _, group in table[table["status"] != STOPPED].groupby(["width", "sites"]):
        table.loc[group.index, "on_frontier"] = on_frontier(group)
    return table.sort_values(["width", "l0", "architecture", "name", "trial"], na_position="last", ignore_index=True)


def _row(record: TrialRecord) -> dict[str, Any]:
    dictionary: Mapping[str, Any] = record.config.get("dictionary", {})
    result: Mapping[str, float | None] = record.result if record.status in (*FINISHED, STOPPED) else {}
    return {
        "trial": record.trial,
        "name": record.name,
        "architecture": dictionary.get("architecture", ""),
        "sites": _sites(record.config.get("data", {})),
        "width": dictionary.get("width"),
        "target_l0": _number(dictionary.get("target_l0")),
        **{name: _number(result.get(name)) for name in MEASURED},
        "status": record.status,
        "reason": record.reason,
        "workers": record.workers,
        "seconds": _number(record.timing.get("total_s")),
        "rows_per_s": _number(record.timing.get("rows_per_s")),
        "on_frontier": False,
    }


def _sites(data: Mapping[str, Any]) -> str:
    """Format sites: `layer3`, `layer3 + layer4` or `layer3 > layer4`."""
    read, written = (" + ".join(data.get(kind, ())) for kind in ("inputs", "outputs"))
    return f"{read} > {written}" if written else read


def _curve_rows(record: TrialRecord) -> list[dict[str, Any]]:
    """Return rows of a finished trial at other numbers of active latents; only the trial's own row has times."""
    if record.status not in FINISHED or not record.curve:
        return []
    trained = record.config.get("dictionary", {}).get("target_l0")
    return [
        {
            **_row(record),
            **{name: _number(point.get(name)) for name in MEASURED},
            "name": f"{record.name}@{point['k']:g}",
            "target_l0": _number(point["k"]),
            "seconds": math.nan,
            "rows_per_s": math.nan,
            "reason": "",
            "status": DONE,
        }
        for point in record.curve
        if point["k"] != trained
    ]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def write_frontier(store: Store, table: pd.DataFrame) -> None:
    """Write the table as `frontier.parquet`, and as `frontier.csv` for programs that do not read that."""
    store.write(FRONTIER_FILE, table.to_parquet(index=False))
    texts = {name: table[name].map(spreadsheet_cell) for name, column in COLUMNS.items() if column.dtype == "str"}
    store.write("frontier.csv", table.assign(**texts).to_csv(index=False).encode())


def read_frontier(store: Store) -> pd.DataFrame:
    """Read the table. Raises FileNotFoundError."""
    return pd.read_parquet(BytesIO(store.read(FRONTIER_FILE)))


def format_cell(column: str, value: Any) -> str:
    """Format a value of `column`, the same in the terminal and in the report."""
    kind = COLUMNS[column]
    if kind.dtype == "bool":
        return "yes" if value else ""
    if kind.dtype == "str":
        return str(value)
    if pd.isna(value):
        return MISSING
    if not math.isfinite(value):
        return str(float(value))
    is_huge = kind.dtype == "float64" and kind.format.endswith("f") and abs(value) >= 1e8
    return f"{value:{'.3g' if is_huge else kind.format}}"


def frontier_rich_table(table: pd.DataFrame) -> Table:
    """Return the table for a terminal of 80 columns; long names are cut, numbers never."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # The only column that may shrink: rich takes width from the others only when none is left to wrap.
    shown.add_column("name", overflow="ellipsis", max_width=28)
    for column in _TERMINAL_COLUMNS:
        kind = COLUMNS[column]
        shown.add_column(kind.heading, justify="left" if kind.is_text else "right", no_wrap=True)
    for row in table.to_dict("records"):
        # Text, not str: a name may hold the brackets of rich's markup.
        cells = [Text(format_cell(column, row[column])) for column in _TERMINAL_COLUMNS]
        cells[_TERMINAL_COLUMNS.index("status")].stylize(_STATUS_STYLES.get(row["status"], "dim"))
        shown.add_row(Text(row["name"]), *cells, style="bold" if row["on_frontier"] else "")
    return shown
