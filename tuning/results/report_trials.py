"""The trials of a report: the picture of their frontier, the rows of their table, and a section for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lexray.tuning.results.columns import (
    COLUMNS,
    L0_FVU,
    OPTIONAL,
    WHERE_KNOWN,
    FrontierAxes,
    format_cell,
    has_values,
    heading,
)
from lexray.tuning.results.measured import Document
from lexray.tuning.results.plot import NARROW_IN, WIDE_IN, frontier_svg
from lexray.tuning.results.recommend import CRITERIA, Criterion
from lexray.tuning.results.report_sections import trial_section
from lexray.tuning.sweep_folder import TrialRecord

Metrics = Mapping[str, Sequence[Mapping[str, Any]]]
"""Trial id to its logged records."""

_NOT_IN_TABLE = ("trial", "reason", "bits_at_fvu", "configuration")


class Choices(NamedTuple):
    """Choices of a report's reader."""

    axes: FrontierAxes = L0_FVU
    """The axes of the picture."""
    by: Criterion = CRITERIA["fvu"]
    """The criterion of the recommendations."""


DEFAULTS = Choices()


class ReportTrials(NamedTuple):
    """Description of the report's sweep."""

    table: pd.DataFrame
    records: Sequence[TrialRecord]
    metrics: Metrics
    measures: Mapping[str, Document]
    choices: Choices

    def shown(self, place: str) -> dict[str, Any]:
        """The frontier and the trials, as the template wants them."""
        by_trial = {record.trial: record for record in self.records}
        rows, axes = self.table.to_dict("records"), self.choices.axes
        sections_of_trials = [
            trial_section(
                place,
                by_trial[row["trial"]],
                row,
                self.metrics.get(row["trial"], ()),
                self.measures.get(row["trial"]),
                self.table,
            )
            for row in rows
            if row["name"] == by_trial[row["trial"]].name  # not the further points of its curve
        ]
        columns = self._columns()
        return {
            "wide": frontier_svg(self.table, size_in=WIDE_IN, prefix="wide", axes=axes),
            "narrow": frontier_svg(self.table, size_in=NARROW_IN, prefix="narrow", axes=axes),
            "axes": [heading(name, self.table, long=True) for name in axes] if axes != L0_FVU else None,
            "columns": [
                HeadOfColumn(name, heading(name, self.table), not COLUMNS[name].is_text, name in OPTIONAL)
                for name in columns
            ],
            "rows": [_table_row(row, columns) for row in rows],
            "trials": sections_of_trials,
        }

    def _columns(self) -> list[str]:
        """Return the columns of the page's table: of the optional ones, those that have values."""
        shown = [name for name in COLUMNS if name not in _NOT_IN_TABLE]
        return [name for name in shown if name not in (*OPTIONAL, *WHERE_KNOWN) or has_values(name, self.table)]


class HeadOfColumn(NamedTuple):
    """Head of a column of the page's table."""

    name: str
    heading: str
    is_number: bool
    is_optional: bool
    """Whether it is hidden until the reader asks for it."""


def _table_row(row: dict[Any, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Format a row for the template: `cells` of (column, exact value to sort by, text)."""
    cells = [(name, _sort_value(row[name]), format_cell(name, row[name])) for name in columns]
    return {"trial": row["trial"], "on_frontier": row["on_frontier"], "cells": cells}


def _sort_value(value: Any) -> str:
    return "" if pd.isna(value) else str(value)
