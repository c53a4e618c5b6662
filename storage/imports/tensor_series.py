"""Tensors over many files, one file after the other, and which of them a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from lexray.storage.errors import UserError
from lexray.storage.imports.source import SourceFile, SourceFolder
from lexray.storage.imports.tensor_files import READERS, StoredTensor, TensorFacts, tensor_facts

Opener = Callable[[SourceFile], dict[str, StoredTensor]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A file's share of a series."""

    file: SourceFile
    name: str
    """What the tensor is called in the file."""
    facts: TensorFacts

    @property
    def rows(self) -> int:
        return self.facts.rows


@dataclass(frozen=True, kw_only=True)
class Series:
    """One tensor over all files, one after the other."""

    parts: list[Part]
    open_file: Opener

    @cached_property
    def starts(self) -> np.ndarray:
        """Number of the first row of each file, and of the row after the last."""
        return np.cumsum([0, *(part.rows for part in self.parts)])

    @property
    def rows(self) -> int:
        return int(self.starts[-1])

    @property
    def dtypes(self) -> list[torch.dtype]:
        return [part.facts.dtype for part in self.parts]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows from `start` up to `stop`; where files of several dtypes meet, in the widest of them."""
        first, last = np.searchsorted(self.starts, [start, stop - 1], side="right") - 1
        pieces = []
        for part, begin in zip(self.parts[first : last + 1], self.starts[first : last + 1].tolist(), strict=True):
            low, high = max(start - begin, 0), min(stop - begin, part.rows)
            if low < high:
                pieces.append(self.open_file(part.file)[part.name].read(low, high))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def place(self, row: int) -> str:
        """File and number in it of a row."""
        index = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.parts[index].file}, row {row - self.starts[index]}"


def find_series(folder: SourceFolder, new_opener: Callable[[], Opener]) -> tuple[dict[str, Series], list[str]]:
    """Every series of a folder by its name, and what was passed over. Series that share no file share no opener."""
    files, ignored = _tensor_files(folder)
    folders = {inside.name: _tensor_files(inside) for inside in folder.folders()}
    folders = {name: found for name, found in folders.items() if found[0]}
    if files and folders:
        raise UserError(f"{folder}: {len(files)} tensor files beside {len(folders)} sub-folders of them; keep one kind")
    if not files and not folders:
        raise UserError(f"{folder}: no {', '.join(READERS)} file there; give the folder that holds them")
    if files:
        found = _side_by_side(files, new_opener())
    else:
        found = {name: _only_tensors(inside, new_opener()) for name, (inside, _) in folders.items()}
        ignored += [file for _, passed in folders.values() for file in passed]
    names = ", ".join(file.name for file in ignored[:3])
    return found, [f"passed over {len(ignored)} files of other kinds ({names})"] if ignored else []


def _side_by_side(files: list[SourceFile], open_file: Opener) -> dict[str, Series]:
    tensors = {file: tensor_facts(file, open_file) for file in files}
    first = files[0]
    for file, found in tensors.items():
        if found.keys() != tensors[first].keys():
            raise UserError(
                f"{file}: holds {_listed(found)}, but {first.name} holds {_listed(tensors[first])}; "
                "each file needs the same tensors"
            )
        rows = {name: facts.rows for name, facts in found.items()}
        for name, count in rows.items():
            if count != next(iter(rows.values())):
                other = next(iter(rows))
                raise UserError(f"{file}: {name} has {count} rows, {other} {rows[other]}; each row needs all of them")
    return {
        name: Series(
            parts=[Part(file=file, name=name, facts=tensors[file][name]) for file in files], open_file=open_file
        )
        for name in tensors[first]
    }


def _only_tensors(files: list[SourceFile], open_file: Opener) -> Series:
    parts = []
    for file in files:
        found = tensor_facts(file, open_file)
        if len(found) != 1:
            raise UserError(f"{file}: holds {len(found)} tensors, expected 1 in a file of a site's own folder")
        ((name, facts),) = found.items()
        parts.append(Part(file=file, name=name, facts=facts))
    return Series(parts=parts, open_file=open_file)


def _tensor_files(folder: SourceFolder) -> tuple[list[SourceFile], list[SourceFile]]:
    """The tensor files directly in a folder, and its other files."""
    files = folder.files()
    return [file for file in files if file.suffix in READERS], [file for file in files if file.suffix not in READERS]


def check_parts(series: Series, name: str, *, ndim: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise UserError naming the first file whose tensor is no run of rows as the first file's."""
    first = series.parts[0]
    for part in series.parts:
        shape = part.facts.shape
        if len(shape) != ndim or 0 in shape[1:]:
            wanted = "rows x width" if ndim == 2 else "one number per row"
            raise UserError(
                f"{part.file}: {name} has shape {list(shape)}, expected {ndim} dimensions ({wanted}); reshape it"
            )
        if part.facts.dtype not in dtypes:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise UserError(
                f"{part.file}: {name} has dtype {str(part.facts.dtype).removeprefix('torch.')}, expected one of {known}"
            )
        if shape[1:] != first.facts.shape[1:]:
            raise UserError(
                f"{part.file}: {name} has width {shape[1]}, but {first.file.name} has {first.facts.shape[1]}; "
                "a site has one width"
            )


def check_aligned(series: dict[str, Series]) -> int:
    """The rows that all series have. Raises UserError with both numbers when they differ."""
    (first, expected), *others = [(name, of_name.rows) for name, of_name in series.items()]
    for name, rows in others:
        if rows != expected:
            raise UserError(f"{name} has {rows:,} rows, but {first} has {expected:,}; each row needs both")
    if not expected:
        raise UserError(f"{series[first].parts[0].file}: {first} has 0 rows; there is nothing to import")
    return expected


def widest(dtypes: list[torch.dtype]) -> torch.dtype:
    """The dtype that holds the values of all."""
    widest = dtypes[0]
    for dtype in dtypes[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest


def _listed(found: dict[str, TensorFacts]) -> str:
    return ", ".join(name or "a tensor without a name" for name in found) or "nothing"
