"""Open files of tensors by suffix: shapes known at once, rows read on request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.imports.array_files import RAW_SUFFIXES, RawFormat, open_npy, open_npz, open_raw
from lexray.storage.imports.source import SourceFile
from lexray.storage.imports.stored_tensor import FileFacts, OpenedFile, StoredTensor, TensorFacts, facts_of
from lexray.storage.imports.torch_files import open_pt


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
        found: torch.Tensor = part[box]
        return found

    return StoredTensor(TensorFacts(shape, dtype), cut)


READERS: dict[str, Callable[[Path, SourceFile, RawFormat | None], OpenedFile]] = {
    ".npy": open_npy,
    ".npz": open_npz,
    ".pt": open_pt,
    ".pth": open_pt,
    ".safetensors": _open_safetensors,
}


OPEN_COPIES = 2
"""Unpacked files kept open per site: a block may begin in one file and end in the next."""


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
