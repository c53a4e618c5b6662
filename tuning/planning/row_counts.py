"""Counts the rows that a sweep's dictionaries read, from small columns, once for each choice of sites."""

from __future__ import annotations

from typing import NamedTuple

from lexray.storage.errors import UserError
from lexray.storage.selection import HELD_OUT_PARTS, HeldOutPart, Part, SelectedRows
from lexray.storage.windows import WindowReader
from lexray.training.config import DataConfig

MAX_OUTLYING_SHARE = 0.2
"""Maximum share of rows with outlying norms; a filter that drops more counts as a mistake."""
DOCUMENT_SPREAD = 0.2
"""Standard deviation of a document's FVU over its mean: 0.16 for TopK on MiniLM, rounded up."""


class HeldOutPlan(NamedTuple):
    """Held-out rows of a sweep, and the resolution that they give its results."""

    share: float
    """Share of the dataset's rows."""
    validation_rows: int
    """Rows after filtering, as those of `test_rows`."""
    test_rows: int
    test_documents: int
    fvu_error: float
    """Expected standard error of an FVU, as a share of it: `DOCUMENT_SPREAD` over the root of the number of equally
    long documents that would be as good as those for test."""


class HeldOutRows(NamedTuple):
    """Number of rows in each held-out part."""

    validation: int
    test: int


class RowCounts:
    """Counts of the rows of each part after filtering."""

    def __init__(self) -> None:
        self._selected: dict[tuple[tuple[str, ...], Part], SelectedRows] = {}

    def training(self, data: DataConfig) -> int:
        """Return the number of training rows. Raises UserError if they fill no batch, or the norm filter drops too
        many.
        """
        selected = self._select(data, "train")
        rows = int(selected.counts.sum())
        _check_outlying(data, selected)
        if data.batch_rows > rows:
            raise UserError(
                f"data.batch_rows: {data.batch_rows:,} is larger than the dataset's {rows:,} training rows "
                f"(data.held_out {data.held_out:g} keeps the others); lower one of them"
            )
        return rows

    def held_out(self, data: DataConfig) -> HeldOutRows:
        """Return the numbers of held-out rows. Raises UserError if those of a part do not fill the lanes."""
        return HeldOutRows(*(self._held_out_rows(data, part) for part in HELD_OUT_PARTS))

    def held_out_plan(self, data: DataConfig) -> HeldOutPlan:
        """Return what is held out of the dataset for these sites."""
        parts = {part: self._select(data, part) for part in HELD_OUT_PARTS}
        lengths = parts["test"].document_rows.astype(float)
        all_rows = sum(len(mask) for mask in parts["test"].masks)
        return HeldOutPlan(
            share=sum(float(selected.document_rows.sum()) for selected in parts.values()) / all_rows,
            validation_rows=int(parts["validation"].counts.sum()),
            test_rows=int(parts["test"].counts.sum()),
            test_documents=len(lengths),
            fvu_error=DOCUMENT_SPREAD * float((lengths**2).sum()) ** 0.5 / float(lengths.sum()),
        )

    def _held_out_rows(self, data: DataConfig, part: HeldOutPart) -> int:
        rows = int(self._select(data, part).counts.sum())
        if rows < data.lanes:
            raise UserError(
                f"data.held_out: {data.held_out} of the {data.held_out_of} leave {rows} rows for {part}, "
                f"fewer than the {data.lanes} lanes (data.lanes); raise it"
            )
        return rows

    def read_share(self, data: DataConfig, part: Part) -> float:
        """Return the share of the dataset that an epoch of a part reads: chunks are read whole."""
        masks = self._select(data, part).masks
        return sum(len(mask) for mask in masks if mask.any()) / sum(len(mask) for mask in masks)

    def _select(self, data: DataConfig, part: Part) -> SelectedRows:
        key = (data.sites, part)
        if key not in self._selected:
            self._selected[key] = WindowReader(data.stream_spec(part)).selected
        return self._selected[key]


def _check_outlying(data: DataConfig, selected: SelectedRows) -> None:
    total = sum(len(mask) for mask in selected.masks)
    if selected.outlying > MAX_OUTLYING_SHARE * total:
        raise UserError(
            f"data.max_norm_ratio: {data.max_norm_ratio:g} drops {selected.outlying:,} of {total:,} rows "
            f"({selected.outlying / total:.0%}, at most {MAX_OUTLYING_SHARE:.0%} are taken for outliers); "
            "raise it, or set null to keep all rows"
        )
