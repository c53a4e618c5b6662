"""The columns of the frontier table, each declared once: where its values stand, how they print, which ones are better.

Measures are columns too: `place` says where a value stands in a trial's `measures.json`. What is declared here reaches
`frontier.parquet`, the report, the terminal, W&B, and the axes that the frontier can be drawn over.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import pandas as pd

from lexray.storage.errors import UserError

MISSING = "-"


class Column(NamedTuple):
    """A column of the table."""

    dtype: str
    heading: str
    """Its name in the report and on the terminal."""
    format: str = ""
    """Format of its numbers."""
    better: Literal["lower", "higher", ""] = ""
    """Which values are better; "" for text."""
    place: str = ""
    """Dotted path of its value in `measures.json`: `likeness.cosine`; "" for what is not a measure."""
    label: str = ""
    """Its name beside an axis; by default the heading."""

    @property
    def is_text(self) -> bool:
        """Whether it holds words, which are aligned left."""
        return self.dtype in ("str", "bool")


COLUMNS = {
    "trial": Column("str", "trial"),
    "name": Column("str", "name"),
    "architecture": Column("str", "architecture"),
    "sites": Column("str", "sites"),
    "width": Column("Int64", "width", ".0f", "lower", label="width (latents)"),
    "target_l0": Column("float64", "target", ".6g", "lower", label="target L0"),
    "l0": Column("float64", "L0", ".2f", "lower", label="L0 (active latents per row)"),
    "fvu": Column("float64", "FVU", ".4f", "lower", label="FVU (fraction of variance unexplained)"),
    "fvu_error": Column("float64", "±", ".4f", "lower", "documents.fvu_error", "standard error of FVU"),
    "explained_variance": Column("float64", "EV", ".4f", "higher", label="explained variance"),
    "dead_fraction": Column("float64", "dead", ".1%", "lower", label="dead latents (share)"),
    "bits": Column("float64", "bits", ".1f", "lower", "description_length.bits_at_fvu", "bits per row"),
    "bits_at_fvu": Column("float64", "FVU of bits", ".2f", "lower"),
    "cosine": Column("float64", "cosine", ".4f", "higher", "likeness.cosine", "cosine with the row"),
    "max_cosine": Column("float64", "max cos", ".3f", "lower", "coherence.max_cosine", "largest |cos| of two atoms"),
    "mean_max_cosine": Column(
        "float64", "mean max cos", ".3f", "lower", "coherence.mean_max_cosine", "mean |cos| of nearest atoms"
    ),
    "babel": Column("float64", "Babel", ".2f", "lower", "coherence.babel", "Babel function at L0"),
    "duplicate_fraction": Column("float64", "duplicates", ".1%", "lower", "coherence.duplicate_fraction"),
    "dense_fraction": Column("float64", "dense", ".1%", "lower", "firing.dense_fraction", "dense latents (share)"),
    "specific_fraction": Column(
        "float64", "specific", ".1%", "higher", "latent_scaling.specific_fraction", "site-specific latents (share)"
    ),
    "artefact_fraction": Column(
        "float64",
        "artefacts",
        ".1%",
        "lower",
        "latent_scaling.artefact_fraction",
        "latents that only look site-specific (share)",
    ),
    "stability": Column("float64", "stability", ".3f", "higher", label="stability over seeds (score)"),
    "stability_at_start": Column("float64", "at start", ".3f", "lower", label="stability over seeds before training"),
    "status": Column("str", "status"),
    "reason": Column("str", "reason"),
    "workers": Column("int64", "workers", ".0f", "lower"),
    "seconds": Column("float64", "seconds", ".1f", "lower"),
    "rows_per_s": Column("float64", "rows/s", ".0f", "higher"),
    "on_frontier": Column("bool", "frontier"),
    "tied": Column("bool", "tied"),
    "configuration": Column("str", "configuration"),
}
"""`sites` are those read and, after an arrow, those reconstructed if others. Fractions are in 0..1; width is missing
only for a trial whose record was never written. `bits` are those at the FVU of `bits_at_fvu`, the same for all trials
of a table; `fvu_error` is the standard error of FVU over test documents; `tied` is beside the frontier by no more than
two standard errors; `configuration` is the same for trials that differ in their seed alone; `stability` is their score,
and `stability_at_start` the mean cosine of their matched atoms before training."""

RESULT = ("l0", "fvu", "explained_variance", "dead_fraction")
"""Columns of the result on test rows: NaN until the trial is finished, or stopped early."""

MEASURES = tuple(name for name, column in COLUMNS.items() if column.place)
"""Columns of `measures.json`: NaN where a trial was not measured."""

OPTIONAL = (*(name for name in MEASURES if name != "fvu_error"), "stability", "stability_at_start")
"""Columns that the report's table shows on request, and the terminal where there is room."""

WHERE_KNOWN = ("fvu_error", "tied")
"""Columns that are shown where a trial has a value."""

NUMERIC = tuple(name for name, column in COLUMNS.items() if not column.is_text)
"""Columns that the frontier can be drawn over."""


class FrontierAxes(NamedTuple):
    """The two numeric columns that the frontier is drawn over."""

    x: str = "l0"
    y: str = "fvu"


L0_FVU = FrontierAxes()
"""The axes of the frontier unless others are chosen."""


def frontier_axes(x: str, y: str) -> FrontierAxes:
    """Return the axes. Raises UserError for a name that is no numeric column."""
    for option, name in (("--x", x), ("--y", y)):
        if name not in NUMERIC:
            raise UserError(f"{option}: {name!r} is no numeric column; choose one of {', '.join(NUMERIC)}")
    if x == y:
        raise UserError(f"--y: {y!r} is on the x axis too; choose another column")
    return FrontierAxes(x, y)


def has_values(name: str, table: pd.DataFrame) -> bool:
    """Whether a trial has a value in the column: a number, or true."""
    values = table[name]
    return bool(values.any() if COLUMNS[name].dtype == "bool" else values.notna().any())


def heading(name: str, table: pd.DataFrame, *, long: bool = False) -> str:
    """Return the heading of a column of `table`, or its longer label; bits say at which FVU they are."""
    column = COLUMNS[name]
    text = column.label or column.heading if long else column.heading
    if name == "bits" and table["bits_at_fvu"].notna().any():
        return f"{text} at FVU {table['bits_at_fvu'].max():g}"
    return text


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
