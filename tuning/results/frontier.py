"""The frontier of a sweep as a table: a row per trial, and the trials that no other of their width beats.

The table is what `frontier.parquet`, `report.html` and the terminal show, see `lexray.tuning.results.columns`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from io import BytesIO
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from lexray.storage.store import Store
from lexray.storage.visible_text import spreadsheet_cell
from lexray.tuning.results.columns import (
    COLUMNS,
    L0_FVU,
    OPTIONAL,
    RESULT,
    WHERE_KNOWN,
    FrontierAxes,
    format_cell,
    has_values,
    heading,
)
from lexray.tuning.results.measured import Document, common_distortion, measured_columns, stability_columns
from lexray.tuning.results.stability import configuration_key
from lexray.tuning.results.ties import FvuErrors, tied_with_frontier
from lexray.tuning.sweep_folder import DONE, FAILED, FINISHED, PAUSED, STOPPED, TARGET_MISSED, TrialRecord

FRONTIER_FILE = "frontier.parquet"

_STATUS_STYLES = {
    DONE: "green",
    TARGET_MISSED: "yellow",
    FAILED: "red",
    STOPPED: "cyan",
    **dict.fromkeys(PAUSED, "yellow"),
}
_TERMINAL_COLUMNS = ("width", "target_l0", "l0", "fvu", "fvu_error", "dead_fraction")
_LAST_COLUMNS = ("status", "on_frontier", "tied")
_NAME_WIDTH, _GAP = 28, 2


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


def on_frontier(rows: pd.DataFrame, axes: FrontierAxes = L0_FVU) -> npt.NDArray[np.bool_]:
    """Return the mask of rows that no other beats on both axes; rows of L0 0, or of FVU 1 or more, are excluded."""
    x, y = (rows[name].astype("float64") * (-1 if COLUMNS[name].better == "higher" else 1) for name in axes)
    return non_dominated(x, y.where((rows["l0"] > 0) & (rows["fvu"] < 1)))


def frontier_table(
    records: list[TrialRecord],
    measures: Mapping[str, Document] = MappingProxyType({}),
    stability: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Return one row per trial with the columns `COLUMNS`, by width, L0 and architecture; unfinished trials last.

    A trial whose dictionary works at several numbers of active latents has a further row for each, `NAME@K`.
    `on_frontier` compares finished trials of the same width and sites only: other widths have another cost, other sites
    are another task. Trials that were stopped early have metrics, but are not on the frontier.

    `measures` holds `measures.json` by trial, `stability` is the sweep's document. Bits are those at the smallest FVU
    that every measured trial reaches. A further row has no measures.
    """
    distortion, of_seeds = common_distortion(measures.values()), stability_columns(stability)
    rows = []
    for record in records:
        document = measures.get(record.trial) if record.status in FINISHED else None
        found = measured_columns(document, distortion) if document is not None else {}
        rows += [_row(record) | found | of_seeds.get(record.trial, {}), *_curve_rows(record)]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({name: column.dtype for name, column in COLUMNS.items()})
    errors = FvuErrors(measures.get)
    for _, group in table[table["status"] != STOPPED].groupby(["width", "sites"]):
        table.loc[group.index, "on_frontier"] = on_frontier(group)
        table.loc[group.index, "tied"] = tied_with_frontier(table.loc[group.index], errors)
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
        **{name: _number(result.get(name)) for name in RESULT},
        "status": record.status,
        "reason": record.reason,
        "workers": record.workers,
        "seconds": _number(record.timing.get("total_s")),
        "rows_per_s": _number(record.timing.get("rows_per_s")),
        "on_frontier": False,
        "tied": False,
        "configuration": configuration_id(record),
    }


def configuration_id(record: TrialRecord) -> str:
    """Return 8 hexadecimal digits of all that decides a trial but its seed; empty before the trial has a record."""
    return hashlib.sha256(configuration_key(record, ("seed",)).encode()).hexdigest()[:8] if record.config else ""


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
            **{name: _number(point.get(name)) for name in RESULT},
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


def frontier_rich_table(table: pd.DataFrame, columns: int = 80) -> Table:
    """Return the table for a terminal of `columns` characters; long names are cut, numbers never.

    Measures are shown as far as there is room for them.
    """
    names = _terminal_columns(table, columns)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    # The only column that may shrink: rich takes width from the others only when none is left to wrap.
    shown.add_column("name", overflow="ellipsis", max_width=_NAME_WIDTH)
    for name in names:
        shown.add_column(heading(name, table), justify="left" if COLUMNS[name].is_text else "right", no_wrap=True)
    for row in table.to_dict("records"):
        # Text, not str: a name may hold the brackets of rich's markup.
        cells = [Text(format_cell(name, row[name])) for name in names]
        cells[names.index("status")].stylize(_STATUS_STYLES.get(row["status"], "dim"))
        shown.add_row(Text(row["name"]), *cells, style="bold" if row["on_frontier"] else "")
    return shown


def _terminal_columns(table: pd.DataFrame, columns: int) -> list[str]:
    """Return the columns for a terminal: the usual ones, and of the optional ones that have values, what fits."""

    def width(name: str) -> int:
        return _GAP + max([len(heading(name, table)), *(len(format_cell(name, value)) for value in table[name])])

    first, last = (
        [name for name in names if name not in WHERE_KNOWN or has_values(name, table)]
        for names in (_TERMINAL_COLUMNS, _LAST_COLUMNS)
    )
    room = columns - _NAME_WIDTH - sum(width(name) for name in (*first, *last))
    fitting = []
    for name in OPTIONAL:
        if has_values(name, table) and width(name) <= room:
            fitting.append(name)
            room -= width(name)
    return [*first, *fitting, *last]
