"""Decompress packed files (gzip, bzip2, xz, zstandard, lz4, zip) as they are read.

The magic bytes decide, not the name: servers and tools decompress in transfer and keep the name.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from lexray.storage.errors import UserError, one_line

HEAD_BYTES = 512
_BUFFER_BYTES = 1 << 20
_STEP_BYTES = 1 << 16
_MAGIC: dict[str, tuple[bytes, ...]] = {
    "gzip": (b"\x1f\x8b",),
    "bzip2": tuple(b"BZh%d" % level + block for level in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")),
    "xz": (b"\xfd7zXZ\x00",),
    # A file may begin with a skippable frame.
    "zstandard": (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))),
    "lz4": (b"\x04\x22\x4d\x18",),
    "zip": (b"PK\x03\x04", b"PK\x05\x06"),
    "7z": (b"7z\xbc\xaf\x27\x1c",),
    "rar": (b"Rar!\x1a\x07",),
}
_SUFFIXES = {
    ".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".lzma": "lzma", ".zst": "zstandard", ".zstd": "zstandard",
    ".lz4": "lz4", ".zip": "zip", ".7z": "7z", ".rar": "rar",
}  # fmt: skip
_REFUSED = {"7z", "rar", "tar"}


class DamagedFileError(UserError):
    """A packed file that ends too early or holds bytes that cannot be unpacked."""


def find_packing(place: str, name: str, head: bytes) -> str | None:
    """Return the packing of the file `name` with first bytes `head`; None for a plain file.

    Raises UserError, prefixed with `place`, for a file that is neither packed as named nor text.
    """
    found = _packing_of(head)
    said = next((packing for suffix, packing in _SUFFIXES.items() if name.lower().endswith(suffix)), None)
    if said == "lzma" and found is None and head[:1] == b"\x5d":  # lzma has no magic bytes
        found = said
    if found == "zip" and said != "zip":
        raise UserError(f"{place} is a zip archive, as .docx and .npz files are; unpack it, or name it .zip")
    if found in _REFUSED:
        raise UserError(f"{place} is a {found} archive; unpack it and give the files in it")
    is_cut = said is not None and any(magic.startswith(head) for magic in _MAGIC.get(said, ()))
    if found is None and said is not None and (is_cut or not _is_text(head)):
        begins = head[:6].hex(" ") or "nothing: it is empty"
        raise UserError(f"{place} is named as {said}, but begins with {begins}; copy or pack it again")
    return found


def _packing_of(head: bytes) -> str | None:
    if head[257:262] == b"ustar":
        return "tar"
    return next((packing for packing, magic in _MAGIC.items() if head.startswith(magic)), None)


def _is_text(head: bytes) -> bool:
    """Return whether the first bytes of a file are text, where the last character may be cut; empty is not text."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < HEAD_BYTES - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text) and "\0" not in text


def unpack(place: str, raw: BinaryIO, packing: str, size: int) -> Iterator[tuple[str, BinaryIO]]:
    """Yield name and content of each file in the packed file `raw` of `size` bytes; the name is empty except for zip.

    Reading raises DamagedFileError, prefixed with `place`, where the bytes cannot be unpacked.
    """
    if packing != "zip":
        yield "", _reader(place, raw, _OPENERS[packing], packing, size)
        return
    with _unpacking(place, raw, packing, size):
        archive = zipfile.ZipFile(raw)
    for member in archive.infolist():
        if _is_document(member):
            yield member.filename, _reader(place, raw, partial(_open_member, archive, member), packing, size)


def _open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, raw: Any) -> Any:
    return archive.open(member)


def _is_document(member: zipfile.ZipInfo) -> bool:
    """Return whether a member is a file, neither a folder nor metadata added by macOS."""
    parts = member.filename.split("/")
    return not member.is_dir() and parts[0] != "__MACOSX" and parts[-1] != ".DS_Store"


def _reader(place: str, raw: BinaryIO, opener: Callable[[Any], Any], packing: str, size: int) -> BinaryIO:
    with _unpacking(place, raw, packing, size):
        inner = opener(raw)
    reader = io.BufferedReader(_Unpacked(place, raw, inner, packing, size), _BUFFER_BYTES)
    within = _packing_of(reader.peek(HEAD_BYTES)[:HEAD_BYTES])
    if within is not None:
        raise UserError(f"{place} is a {within} file packed as {packing}; unpack it and give what is in it")
    return reader


def _arrow_stream(raw: Any, codec: str) -> Any:
    return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec)


_OPENERS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw),
    "bzip2": bz2.BZ2File,
    "xz": lzma.LZMAFile,
    "lzma": lzma.LZMAFile,
    "zstandard": partial(_arrow_stream, codec="zstd"),
    "lz4": partial(_arrow_stream, codec="lz4"),
}


@contextmanager
def _unpacking(place: str, raw: BinaryIO, packing: str, size: int) -> Iterator[None]:
    """Turn any exception of a library into a one-line user error; errors of the store propagate."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        said = one_line(error).rstrip(".")
        if "too much memory" in said:  # zstandard frames with a window above 128 MiB
            raise UserError(
                f"{place} is packed with a window above 128 MiB, which cannot be read; unpack it with "
                "zstd -d --long=31, or pack it again with zstd --long=27"
            ) from error
        read = size if raw.closed else raw.tell()
        raise DamagedFileError(
            f"{place} is cut short or damaged: cannot unpack it as {packing} at byte {read:,} of {size:,} ({said}); "
            "copy it again"
        ) from error


class _Unpacked(io.RawIOBase):
    """The unpacked bytes."""

    def __init__(self, place: str, raw: BinaryIO, inner: Any, packing: str, size: int) -> None:
        self._inner = inner
        # Little at once, so that content before damage is read.
        self._read = getattr(inner, "read1", inner.read)
        self._source = place, raw, packing, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _unpacking(*self._source):
            data = self._read(min(len(buffer), _STEP_BYTES))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._inner.close()
        super().close()
