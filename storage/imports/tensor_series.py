"""Series: a tensor concatenated over many files, and checks of the consistency of its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lexray.storage.errors import UserError
from lexray.storage.imports.file_names import check_same_names
from lexray.storage.imports.source import SourceFile
from lexray.storage.imports.stored_tensor import TensorFacts
from lexray.storage.imports.tensor_files import Opener

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
INTEGERS = (torch.bool, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file's part of a series."""

    file: SourceFile
    name: str
    """Name of the tensor in the file."""
    facts: TensorFacts


@dataclass(frozen=True, kw_only=True)
class Series:
    """One tensor concatenated over files."""

    parts: list[Part]
    open_file: Opener
    lead: int = 1
    """Number of dimensions that count rows: 2 for documents x tokens."""

    @cached_property
    def starts(self) -> np.ndarray:
        """First row of each part, and the end of the last."""
        return np.cumsum([0, *self.part_rows])

    @property
    def part_rows(self) -> list[int]:
        return [part.facts.rows(self.lead) for part in self.parts]

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @property
    def files(self) -> list[SourceFile]:
        """Files in order, each once."""
        return list(dict.fromkeys(part.file for part in self.parts))

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Return the first row of each document where two dimensions count rows."""
        shapes = [part.facts.shape for part in self.parts]
        pieces = [begin + np.arange(shape[0]) * shape[1] for begin, shape in zip(self.starts[:-1], shapes, strict=True)]
        return np.concatenate(pieces)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Read rows `start` to `stop`; in the widest dtype where files of several dtypes meet."""
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right") - 1
        pieces = []
        for index in range(int(first), int(last) + 1):
            part, begin, end = self.parts[index], int(self.starts[index]), int(self.starts[index + 1])
            low, high = max(start, begin) - begin, min(stop, end) - begin
            if low < high:
                pieces.append(self.open_file(part.file).tensors[part.name].read(low, high, self.lead))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def place(self, row: int) -> str:
        """Return a row's file and index in it."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        part, inside = self.parts[index], row - int(self.starts[index])
        item = f", {part.name}" if "[" in part.name else ""
        if self.lead == 1:
            return f"{part.file}{item}, row {inside}"
        return f"{part.file}{item}, document {inside // part.facts.shape[1]}, token {inside % part.facts.shape[1]}"


def check_parts(series: Series, name: str, *, ndim: int, dtypes: tuple[torch.dtype, ...], advice: str = "") -> None:
    """Raise UserError naming the first file whose tensor does not continue the first file's.

    A site has one more dimension than those that count rows, its width; a column has none.
    """
    first, called, is_site = series.parts[0], name or "its tensor", ndim > series.lead
    for part in series.parts:
        shape, dtype = part.facts.shape, part.facts.dtype
        if part.facts.problem:
            raise UserError(f"{part.file}: {called} {part.facts.problem}{advice}")
        if len(shape) != ndim or (is_site and 0 in shape[1:]):
            raise UserError(
                f"{part.file}: {called} has shape {list(shape)}, expected {ndim} dimensions "
                f"({_dimensions(series.lead, is_site)}); reshape it{advice}"
            )
        if dtype not in dtypes:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            cast = "; convert its values to float16 or float32" if is_site else ""
            raise UserError(
                f"{part.file}: {called} has dtype {str(dtype).removeprefix('torch.')}, "
                f"expected one of {known}{cast}{advice}"
            )
        if is_site and shape[-1] != first.facts.shape[-1]:
            raise UserError(
                f"{part.file}: {called} has width {shape[-1]}, but {first.file.name} has {first.facts.shape[-1]}; "
                "a site has one width"
            )


def _dimensions(lead: int, is_site: bool) -> str:
    if lead == 2:
        return "documents x tokens x width" if is_site else "documents x tokens, as its sites"
    return "rows x width" if is_site else "one number per row"


def check_paired(series: dict[str, Series], *, by_name: bool) -> int:
    """Return the number of rows of all series. Raises UserError naming the first file in which two differ.

    With `by_name` each series has separate files, whose names must match the others'.
    """
    (first, expected), *others = series.items()
    for name, other in others:
        if by_name:
            check_same_names(expected.files, other.files)
        by_part = len(expected.parts) == len(other.parts)
        for (place, rows), (other_place, other_rows) in zip(
            _runs(expected, by_part), _runs(other, by_part), strict=True
        ):
            if rows != other_rows:
                raise UserError(
                    f"{other_place}: {name or 'its tensor'} has {other_rows:,} rows, but {first} has {rows:,} in "
                    f"{place}; rows of sites are paired file by file, so each file needs the same rows of all"
                )
        if expected.lead == other.lead == 2 and by_part and _shapes(expected) != _shapes(other):
            raise UserError(
                f"{other.parts[0].file}: {name} and {first} differ in documents or tokens; reshape one like the other"
            )
    if not expected.rows:
        raise UserError(f"{expected.parts[0].file}: {first or 'its tensor'} has 0 rows; there is nothing to import")
    return expected.rows


def _runs(series: Series, by_part: bool) -> list[tuple[str, int]]:
    """Return place and rows of each part, or of each file."""
    counts = zip(series.parts, series.part_rows, strict=True)
    if by_part:
        return [(f"{part.file}{', ' + part.name if '[' in part.name else ''}", rows) for part, rows in counts]
    rows_of = dict.fromkeys(map(str, series.files), 0)
    for part, rows in counts:
        rows_of[str(part.file)] += rows
    return list(rows_of.items())


def _shapes(series: Series) -> list[tuple[int, ...]]:
    return [part.facts.shape[:2] for part in series.parts]


def widest(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """Return the dtype that represents the values of all."""
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest
