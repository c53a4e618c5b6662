"""Open files of tensors by suffix: shapes known at once, rows read on request."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.imports.array_files import RAW_SUFFIXES, RawFormat, open_npy, open_npz, open_raw
from lexray.storage.imports.source import SourceFile
from lexray.storage.imports.stored_tensor import UNNAMED, FileFacts, OpenedFile, StoredTensor, TensorFacts, facts_of

MAX_DEPTH = 8
"""Dicts and lists of `torch.save` inside one another."""
MAX_ITEMS = 100_000
"""Items in all of them."""
OPEN_COPIES = 2
"""Unpacked files kept open per site: a block may begin in one file and end in the next."""


def _open_safetensors(path: Path, file: SourceFile, raw: RawFormat | None = None) -> OpenedFile:
    def message(error: Exception) -> str:
        return f"{file}: not a whole safetensors file ({one_line(error)}); save it again"

    with as_user_error(message, SafetensorError, KeyError, AttributeError):
        content = safe_open(path, framework="pt")
        return OpenedFile({name: _stored(content, name) for name in content.keys()})  # noqa: SIM118


def _stored(content: Any, name: str) -> StoredTensor:
    part = content.get_slice(name)
    shape = tuple(part.get_shape())
    dtype = part[:0].dtype if shape else content.get_tensor(name).dtype

    def cut(box: tuple[slice, ...]) -> torch.Tensor:
        return part[box]

    return StoredTensor(TensorFacts(shape, dtype), cut)


def _open_pt(path: Path, file: SourceFile, raw: RawFormat | None = None) -> OpenedFile:
    """The tensors of a file that `torch.save` wrote, by name through nested dicts and lists; nothing is ever executed.

    Strings, numbers and the like are its notes.
    """
    _check_archive(path, file)
    what = f"{file}: not a file of tensors that torch can map"
    with (
        as_user_error(lambda error: f"{what} ({_reason(error)}); save it again by torch.save"),  # of any kind
        as_user_error(lambda _: f"{file}: holds other things than tensors, {_foreign(path)}", pickle.UnpicklingError),
        warnings.catch_warnings(action="ignore"),  # of kinds of tensors that are refused anyway
    ):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    tensors: dict[str, StoredTensor] = {}
    notes: dict[str, str] = {}
    for count, (name, value) in enumerate(_leaves(content, UNNAMED, 0, file)):
        if count >= MAX_ITEMS:
            raise UserError(f"{file}: holds more than {MAX_ITEMS:,} items; save fewer and larger tensors")
        if name in tensors or name in notes:
            raise UserError(f"{file}: holds two items called {name!r}; rename one")
        if isinstance(value, torch.Tensor):
            tensors[name] = _stored_in_memory(value)
        else:
            notes[name] = type(value).__name__
    return OpenedFile(tensors, notes)


def _leaves(value: object, name: str, depth: int, file: SourceFile) -> Iterator[tuple[str, object]]:
    """Names and values of what no dict or list holds together: keys are joined by dots, items are `[INDEX]`."""
    if depth > MAX_DEPTH:
        raise UserError(f"{file}: {name[:80]} lies more than {MAX_DEPTH} levels deep; save a dict of tensors")
    if isinstance(value, dict) and value:
        for key, inside in value.items():
            yield from _leaves(inside, f"{name}.{key}" if name else str(key), depth + 1, file)
    elif isinstance(value, list | tuple) and len(value) == 1:
        yield from _leaves(value[0], name, depth + 1, file)
    elif isinstance(value, list | tuple) and any(isinstance(one, torch.Tensor | dict | list | tuple) for one in value):
        for index, inside in enumerate(value):
            yield from _leaves(inside, f"{name}[{index}]", depth + 1, file)
    else:
        yield name, value


def _stored_in_memory(value: torch.Tensor) -> StoredTensor:
    tensor = value.detach()
    facts = TensorFacts(tuple(tensor.shape), tensor.dtype, _problem(tensor))
    return StoredTensor(facts, lambda box: tensor[box])


def _problem(tensor: torch.Tensor) -> str:
    """Why a tensor's rows cannot be read, or an empty string."""
    if tensor.is_quantized:
        return "is a quantized tensor; save it after dequantize()"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is a {str(tensor.layout).removeprefix('torch.')} tensor; save it after to_dense()"
    if tensor.device.type != "cpu":
        return f"lies on the device {tensor.device.type}, which holds no values; save the values themselves"
    claimed, stored = tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()
    if claimed > stored:
        return f"claims {claimed:,} bytes, the file stores {stored:,} for it; save it after contiguous()"
    return ""


def _check_archive(path: Path, file: SourceFile) -> None:
    """Raise UserError unless the file is a zip archive whose members can be mapped as they are."""
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{file}: not a whole file of torch.save in its present form (a zip archive); "
            "copy it again, or load it where it was made and save it by torch.save"
        )
    whole = as_user_error(
        lambda error: f"{file}: not a whole zip archive ({_reason(error)}); copy it again",
        zipfile.BadZipFile, NotImplementedError, ValueError,
    )  # fmt: skip
    with whole, zipfile.ZipFile(path) as archive:
        programs = [name for name in archive.namelist() if "/code/" in name]
        packed = [one.filename for one in archive.infolist() if one.compress_type != zipfile.ZIP_STORED]
    if programs:
        raise UserError(f"{file}: holds a program (TorchScript), which loading would execute; save its tensors alone")
    if packed:
        raise UserError(f"{file}: was compressed after torch.save ({packed[0]}); save it again by torch.save")


def _foreign(path: Path) -> str:
    """Names what a file would execute when it is loaded, and what to save instead."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # whatever it stumbles over in a hostile file, the file is refused already
        names = []
    if names and all(name.startswith(("numpy", "_codecs")) for name in names):
        return "arrays of numpy, which are never unpickled; save tensors (torch.from_numpy) or .npy files"
    shown = f" ({', '.join(name[:60] for name in names[:2])})" if names else ""
    return f"which loading would execute{shown}; save a tensor or a dict of tensors"


def _reason(error: BaseException) -> str:
    """The first line of an error, unless it advises to load the file in an unsafe way."""
    line = one_line(error)
    return "a program or an object" if "weights_only" in line or "pickle" in line else line.rstrip(".")[:200]


READERS: dict[str, Callable[[Path, SourceFile, RawFormat | None], OpenedFile]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".pt": _open_pt,
    ".pth": _open_pt,
    ".safetensors": _open_safetensors,
}


def open_tensor_file(file: SourceFile, *, raw: RawFormat | None = None, edges: bool = False) -> OpenedFile:
    """Open the tensors of a file by name. Raises UserError naming the file when it does not match its suffix.

    With `edges` only shapes and dtypes may be used.
    """
    reader = open_raw if file.suffix in RAW_SUFFIXES else READERS[file.suffix]
    with (
        as_user_error(lambda error: f"{file}: cannot be read ({one_line(error)})", OSError),
        file.local(edges=edges) as path,
    ):
        return reader(path, file, raw)


class Opener:
    """Opens files of tensors and keeps the last few open, `OPEN_COPIES` of those that may be unpacked on disk."""

    def __init__(self, raw: RawFormat | None, max_open: int) -> None:
        self._raw = raw
        self._open = lru_cache(maxsize=max_open)(partial(open_tensor_file, raw=raw))
        self._unpack = lru_cache(maxsize=min(max_open, OPEN_COPIES))(partial(open_tensor_file, raw=raw))

    def __call__(self, file: SourceFile) -> OpenedFile:
        return (self._unpack if file.suffix == ".npz" else self._open)(file)

    def facts(self, file: SourceFile) -> FileFacts:
        """Return the facts of a file; of a file in another store only both ends are read first."""
        if file.store.local_path is None:
            with suppress(UserError):  # its index may lie deeper inside; an actual error shows when all of it is read
                return facts_of(open_tensor_file(file, raw=self._raw, edges=True))
        return facts_of(self(file))
