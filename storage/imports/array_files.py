"""Open numpy arrays: `.npy`, `.npz`, and raw numbers as written by `np.memmap`, mapped into memory.

No object is ever unpickled. A header's claims are compared with the file's size before anything is read.
"""

from __future__ import annotations

import math
import shutil
import struct
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.imports.source import SourceFile
from lexray.storage.imports.stored_tensor import UNNAMED, OpenedFile, StoredTensor, TensorFacts

NPY_MAGIC = b"\x93NUMPY"
ZIP_MAGIC = b"PK\x03\x04"
_RAW = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
RAW_DTYPES = tuple(f"{order}{name}" for order in ("", ">") for name in _RAW)
"""Dtypes of raw numbers; `>` marks big-endian ones."""
RAW_SUFFIXES = (".bin", ".dat", ".memmap", ".mmap", ".raw")
POSITIONAL = "arr_"
"""Prefix of the names that `np.savez` gives to positional arrays."""


MAX_RATIO = 200
"""Maximum compression ratio of vectors: sparse ones compress well, but only constant ones beyond this."""
LEAST_CLAIM = 2**28
"""Bytes below which the compression ratio is not checked."""


@dataclass(frozen=True, kw_only=True)
class RawFormat:
    """Format of files that hold raw numbers without a header."""

    dtype: str
    width: int

    @staticmethod
    def of(dtype: str | None, width: int | None) -> RawFormat | None:
        """Return the format that the two options describe; None without either. Raises UserError naming the option."""
        if dtype is None and width is None:
            return None
        if dtype is None or width is None:
            missing, given = ("--raw-dtype", "--raw-width") if dtype is None else ("--raw-width", "--raw-dtype")
            raise UserError(f"{missing}: is missing, but {given} is given; raw files need both")
        if dtype not in RAW_DTYPES:
            raise UserError(f"--raw-dtype: {dtype!r} is none of {', '.join(RAW_DTYPES)}")
        if width < 1:
            raise UserError(f"--raw-width: {width}, but a row has at least 1 number")
        return RawFormat(dtype=dtype, width=width)

    @property
    def stored(self) -> np.dtype[Any]:
        order = ">" if self.dtype.startswith(">") else "<"
        return np.dtype(order + _RAW[self.dtype.removeprefix(">")])


@dataclass(frozen=True)
class _Header:
    """The first bytes of an array as `.npy` stores it."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int
    """Bytes before the numbers (offset of the data)."""

    @property
    def bytes(self) -> int:
        """Total bytes of header and numbers."""
        return self.begin + math.prod(self.shape) * self.dtype.itemsize


def open_npy(path: Path, file: SourceFile, raw: RawFormat | None = None) -> OpenedFile:
    """Open the array of an `.npy` file, or raw numbers under such a name if their format is given."""
    with open(path, "rb") as opened:
        if opened.read(len(NPY_MAGIC)) != NPY_MAGIC:
            if raw is not None:
                return open_raw(path, file, raw)
            raise UserError(
                f"{file}: not an .npy file (no header); if its {file.size:,} bytes are raw numbers, as np.memmap "
                "writes them, add --raw-dtype float32 --raw-width WIDTH"
            )
        opened.seek(0)
        header = _read_header(opened, str(file))
    if file.size < header.bytes:
        raise UserError(
            f"{file}: not a whole .npy file: {file.size:,} bytes, its header promises {header.bytes:,}; copy it again"
        )
    kind = _not_numbers(header.dtype)
    if kind:
        raise UserError(f"{file}: holds {kind}; save an array of float16 or float32 for each site")
    mapped = _mapped(path, header, 0)
    return OpenedFile({UNNAMED: _stored(header, lambda: mapped)})


def open_raw(path: Path, file: SourceFile, raw: RawFormat | None) -> OpenedFile:
    """Open rows of raw numbers. Raises UserError unless the bytes are a whole number of rows."""
    with open(path, "rb") as opened:
        if opened.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
            raise UserError(
                f"{file}: holds no raw numbers but a zip archive, as torch.save writes it; rename it to .pt"
            )
    assert raw is not None
    row_bytes = raw.width * raw.stored.itemsize
    if file.size % row_bytes:
        raise UserError(
            f"{file}: {file.size:,} bytes are no whole number of rows of {raw.width} x {raw.dtype} ({row_bytes:,} "
            "bytes each); change --raw-width or --raw-dtype"
        )
    header = _Header((file.size // row_bytes, raw.width), False, raw.stored, 0)
    mapped = _mapped(path, header, 0)
    stored = _stored(header, lambda: mapped)
    if raw.stored.kind == "f":
        return OpenedFile({UNNAMED: stored})
    facts = TensorFacts(header.shape, torch.bfloat16)
    return OpenedFile({UNNAMED: StoredTensor(facts, lambda box: stored.cut(box).view(torch.bfloat16))})


def open_npz(path: Path, file: SourceFile, raw: RawFormat | None = None) -> OpenedFile:
    """Open the arrays of an `.npz` file; compressed ones are unpacked to a temporary file on first read."""
    tensors, notes = {}, {}
    with _reading(f"{file}: not a whole .npz file", "save it again by np.savez"):
        archive = zipfile.ZipFile(path)
        members = [member for member in archive.infolist() if not member.is_dir()]
        for member in members:
            name = member.filename.removesuffix(".npy")
            if len(members) > 1 and name.removeprefix(POSITIONAL).isdigit() and name.startswith(POSITIONAL):
                name = f"[{name.removeprefix(POSITIONAL)}]"
            header = _member_header(archive, member, f"{file}, {name}")
            kind = _not_numbers(header.dtype)
            if kind:
                notes[name] = kind
            elif name in tensors:
                raise UserError(f"{file}: holds two arrays called {name}; save it again")
            else:
                tensors[name] = _stored(header, _member_opener(archive, member, header, path, file))
    return OpenedFile(tensors, notes)


def _member_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, place: str) -> _Header:
    """Read the header of an array in an archive. Raises UserError unless the member has the bytes that it claims."""
    with archive.open(member) as opened:
        if opened.read(len(NPY_MAGIC)) != NPY_MAGIC:
            raise UserError(f"{place}: not an array of numpy; save it again by np.savez")
    with archive.open(member) as opened:
        header = _read_header(opened, place)
    if not _not_numbers(header.dtype) and header.bytes != member.file_size:
        raise UserError(
            f"{place}: holds {member.file_size:,} bytes, its header promises {header.bytes:,}; save it again"
        )
    return header


def _member_opener(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header, path: Path, file: SourceFile
) -> Callable[[], np.ndarray]:
    if member.compress_type == zipfile.ZIP_STORED:
        with open(path, "rb") as opened:  # after the archive's local header of the member
            opened.seek(member.header_offset + 26)
            lengths = opened.read(4)
        begin = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        mapped = _mapped(path, header, begin)
        return lambda: mapped
    return cache(lambda: _unpacked(archive, member, header, file))


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: _Header, file: SourceFile) -> np.ndarray:
    """Unpack a compressed array and map it from an unnamed temporary file."""
    check_ratio(header.bytes, member.compress_size, f"{file}: {member.filename} claims {header.bytes:,} bytes")
    place = tempfile.gettempdir()
    free = shutil.disk_usage(place).free
    if free < header.bytes:
        raise UserError(
            f"{file}: {member.filename} has {header.bytes:,} bytes unpacked, but {place} has {free:,} free; "
            "set TMPDIR to a larger disk"
        )
    with (
        _reading(f"{file}: {member.filename} cannot be unpacked", "save it again"),
        tempfile.NamedTemporaryFile(prefix="lexray-import-") as copy,
        archive.open(member) as packed,
    ):
        shutil.copyfileobj(packed, copy, 2**20)
        copy.flush()
        if copy.tell() != header.bytes:
            raise EOFError(f"{copy.tell():,} of {header.bytes:,} bytes")
        return _mapped(Path(copy.name), header, 0)


def _mapped(path: Path, header: _Header, begin: int) -> np.ndarray:
    """Map the numbers of an array whose header is at byte `begin` of a file."""
    if 0 in header.shape:
        return np.zeros(header.shape, header.dtype)
    order: Any = "F" if header.fortran else "C"
    return np.memmap(path, header.dtype, "r", begin + header.begin, header.shape, order)


def _stored(header: _Header, array: Callable[[], np.ndarray]) -> StoredTensor:
    """Return an array as a tensor in native byte order."""
    native = header.dtype.newbyteorder("=")
    try:
        facts = TensorFacts(header.shape, torch.from_numpy(np.empty(0, native)).dtype)
    except TypeError:
        problem = f"has dtype {header.dtype}, which torch does not know; save it as float16 or float32"
        facts = TensorFacts(header.shape, torch.float32, problem)

    def cut(box: tuple[slice, ...]) -> torch.Tensor:
        return torch.from_numpy(np.array(opened()[box], dtype=native, order="C"))

    opened = cache(array)
    return StoredTensor(facts, cut)


def _read_header(opened: IO[bytes], place: str) -> _Header:
    """Read shape, order and dtype of an array. Raises UserError when they are not readable."""
    with _reading(f"{place}: not an .npy file of numbers", "save it again"):
        version = np.lib.format.read_magic(opened)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings(action="ignore"):  # about files written by Python 2
            shape, fortran, dtype = read(opened)
        if any(size < 0 for size in shape):
            raise ValueError(f"its shape is {list(shape)}")
        return _Header(shape, fortran, dtype, opened.tell())


def _not_numbers(dtype: np.dtype[Any]) -> str:
    """Return the kind of an array whose items are not numbers, else an empty string."""
    if dtype.hasobject:
        return "an array of Python objects, which is never loaded"
    if dtype.names is not None:
        return f"a structured array (fields {', '.join(dtype.names)})"
    return "" if dtype.kind in "biufc" else f"an array of {dtype}"


def check_ratio(claimed: int, stored: int, said: str) -> None:
    """Raise UserError when compressed data claims an implausible compression ratio."""
    if claimed > max(LEAST_CLAIM, MAX_RATIO * stored):
        raise UserError(
            f"{said} in {stored:,} compressed ones, more than {MAX_RATIO} to 1: no vectors compress so well; "
            "save it again without compression"
        )


def _reading(what: str, remedy: str) -> AbstractContextManager[None]:
    """Turn any error into one line: each compression has its own, and numpy parses a header as Python."""
    return as_user_error(lambda error: f"{what} ({_first_line(error)}); {remedy}")


def _first_line(error: BaseException) -> str:
    line = one_line(error).rstrip(".")
    return "not the header of an array" if "pickle" in line else line[:200]
