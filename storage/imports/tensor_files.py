"""Tensors in `.npy`, `.pt` and `.safetensors` files, mapped into memory: shapes at once, rows when they are asked for.

Nothing of a file is ever executed: numpy loads no pickled objects and torch only weights.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lexray.storage.errors import UserError
from lexray.storage.imports.source import SourceFile

UNNAMED = ""
"""Name of the tensor of a file that holds one tensor without a name."""


@dataclass(frozen=True)
class TensorFacts:
    """What is known of a tensor without its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file."""

    facts: TensorFacts
    read: Callable[[int, int], torch.Tensor]
    """Rows from the first number up to the second, as they lie in the file."""


Facts = dict[str, TensorFacts]


def tensor_facts(file: SourceFile, open_file: Callable[[SourceFile], dict[str, StoredTensor]]) -> Facts:
    """What a file says of its tensors, by their names; of a file in another store only both ends are read."""
    if file.store.local_path is None:
        with suppress(UserError):  # what it says may lie deeper inside; if it is wrong, reading all of it will tell
            return {name: one.facts for name, one in open_tensor_file(file, edges=True).items()}
    return {name: one.facts for name, one in open_file(file).items()}


def open_tensor_file(file: SourceFile, *, edges: bool = False) -> dict[str, StoredTensor]:
    """The tensors of a file by their names. Raises UserError naming the file when it is not what its name says.

    With `edges` only their shapes and dtypes are to be used.
    """
    try:
        with file.local(edges=edges) as path:
            return READERS[file.suffix](path, file)
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from error


def _open_npy(path: Path, file: SourceFile) -> dict[str, StoredTensor]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{file}: not an .npy file of numbers ({_first_line(error)}); save it again") from error
    native = array.dtype.newbyteorder("=")
    try:
        dtype = torch.from_numpy(np.empty(0, native)).dtype
    except TypeError as error:
        raise UserError(
            f"{file}: dtype {array.dtype} is none that torch knows; save it as float16 or float32"
        ) from error

    def read(start: int, stop: int) -> torch.Tensor:
        return torch.from_numpy(np.array(array[start:stop], dtype=native, order="C"))

    return {UNNAMED: StoredTensor(TensorFacts(array.shape, dtype), read)}


def _open_safetensors(path: Path, file: SourceFile) -> dict[str, StoredTensor]:
    try:
        content = safe_open(path, framework="pt")
        names = list(content.keys())
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({_first_line(error)}); save it again") from error
    found = {}
    for name in names:
        part = content.get_slice(name)
        shape = tuple(part.get_shape())
        dtype = part[:0].dtype if shape else content.get_tensor(name).dtype
        found[name] = StoredTensor(TensorFacts(shape, dtype), _slicer(part))
    return found


def _open_pt(path: Path, file: SourceFile) -> dict[str, StoredTensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: holds other things than tensors, which loading would execute; save a tensor or a dict of tensors"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: not a file that torch can map ({_first_line(error)}); save it again by torch.save"
        ) from error
    named = content if isinstance(content, dict) else {UNNAMED: content}
    found = {}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
            raise UserError(
                f"{file}: {name or 'its content'} is a {_kind(value)}, expected a tensor or a dict of tensors"
            )
        tensor = value.detach()
        found[str(name)] = StoredTensor(TensorFacts(tuple(tensor.shape), tensor.dtype), _slicer(tensor))
    return found


READERS = {".npy": _open_npy, ".pt": _open_pt, ".safetensors": _open_safetensors}


def _slicer(rows: Any) -> Callable[[int, int], torch.Tensor]:
    def read(start: int, stop: int) -> torch.Tensor:
        part: torch.Tensor = rows[start:stop]
        return part

    return read


def _kind(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "quantized tensor" if value.is_quantized else f"{value.layout} tensor"
    return type(value).__name__


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
