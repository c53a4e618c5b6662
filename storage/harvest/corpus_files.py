"""Files of a corpus: find them by path, url or pattern, and read them, decompressing packed ones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from lexray.storage.errors import UserError, as_user_error
from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.harvest.file_trees import Entry, LocalTree, UrlTree, count_alternatives, expand, plain_path
from lexray.storage.harvest.packed_files import HEAD_BYTES, find_packing, unpack
from lexray.storage.objects.options import SCHEMES
from lexray.storage.objects.retries import Retrier
from lexray.storage.objects.settings import S3
from lexray.storage.store import StorageSettings, Store, reachable

T = TypeVar("T")

MOST_ALTERNATIVES = 10_000
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A local file or one at a url."""

    field: str
    """Field of the harvest file, for errors."""
    name: str
    """Path or url of the file."""
    size: int
    """Size in bytes."""
    settings: StorageSettings

    @property
    def place(self) -> str:
        """Prefix of errors about the file."""
        return f"{self.field}: {printable(self.name)}"

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader[Any]]:
        """Open the file as stored. Raises UserError for any error of the file or its store."""
        opened = self._call(self._open)
        with opened, io.BufferedReader(_Guarded(self, opened), _BUFFER_BYTES) as file:
            yield file

    @contextmanager
    def open_unpacked(self) -> Iterator[Iterator[tuple[str, BinaryIO]]]:
        """Yield place (for errors) and content of the file, or of each member of a zip archive.

        Raises UserError for any error of the file or its store, and when it cannot be unpacked.
        """
        with self.open() as raw:
            packing = find_packing(self.place, self.name, raw.peek(HEAD_BYTES)[:HEAD_BYTES])
            if packing is None:
                yield iter([(self.place, raw)])
            else:
                members = unpack(self.place, raw, packing, self.size)
                yield ((f"{self.place}/{printable(name)}" if name else self.place, file) for name, file in members)

    def read(self) -> bytes:
        with self.open() as file:
            return file.read()

    def _open(self) -> Any:
        if "://" not in self.name:
            return open(self.name, "rb", buffering=0)
        return Store.at(self.name, self.settings).filesystem.open(self.name, "rb")

    def _call(self, action: Callable[[], T]) -> T:
        """Return the result of `action`, retried on faults of the store."""
        gone = as_user_error(lambda _: f"{self.place} is not there any more", FileNotFoundError, NotADirectoryError)
        with gone, reachable(self.field, printable(self.name)):
            return Retrier(policy=self.settings.policy).call(printable(self.name), action)


class _Guarded(io.RawIOBase):
    """A raw file whose errors name it."""

    def __init__(self, file: CorpusFile, opened: Any) -> None:
        self._file, self._opened = file, opened

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._opened.seekable())

    def readinto(self, buffer: Any) -> int:
        data = self._file._call(lambda: self._opened.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._opened.seek(offset, whence))

    def tell(self) -> int:
        return int(self._opened.tell())


def find_files(
    field: str, pattern: str, settings: StorageSettings, report: CorpusReport | None = None
) -> list[CorpusFile]:
    """Return the matching files, sorted by name.

    Raises UserError when there is none, or one of them is a broken link.
    """
    found = _find(field, pattern, settings, report or CorpusReport())
    literal = (pattern.rstrip("/"), plain_path(pattern))
    for name, entry in sorted(found.items()):
        _check(field, pattern, name, entry, is_literal=name.rstrip("/") in literal)
    files = {name: entry.size for name, entry in found.items() if entry.kind == "file"}
    if not files:
        raise UserError(f"{field}: no file matches {pattern!r}{_hint(pattern, found)}")
    return [CorpusFile(field=field, name=name, size=size, settings=settings) for name, size in sorted(files.items())]


def _find(field: str, pattern: str, settings: StorageSettings, report: CorpusReport) -> dict[str, Entry]:
    """Return all matches by name."""
    if "\0" in pattern:
        raise UserError(f"{field}: {pattern!r} holds a NUL character, which no file name has")
    scheme, separator, rest = pattern.partition("://")
    if separator and scheme in S3 and not rest.split("/")[0]:
        raise UserError(f"{field}: {pattern} names no bucket; write {scheme}://BUCKET/NAMES")
    if (alternatives := count_alternatives(pattern)) > MOST_ALTERNATIVES:
        raise UserError(f"{field}: the braces stand for {alternatives:,} names, at most {MOST_ALTERNATIVES:,} may")
    with reachable(field, pattern):
        try:
            if not separator or scheme == "file":
                return dict(expand(LocalTree(report), plain_path(pattern)))
            filesystem = Store.at(pattern, settings).filesystem
            if scheme in ("http", "https"):  # where `?` starts a query
                found = filesystem.glob(pattern, detail=True)
                return {name: Entry(kind="file", size=int(entry.get("size") or 0)) for name, entry in found.items()}
            return dict(expand(UrlTree(filesystem, Retrier(policy=settings.policy)), pattern))
        except FileNotFoundError:
            return {}
        except RecursionError as error:
            raise UserError(f"{field}: {pattern} leads into too many folders, one in the other") from error


def _check(field: str, pattern: str, name: str, entry: Entry, *, is_literal: bool) -> None:
    """Raise UserError for a match that cannot be read."""
    if entry.kind == "broken":
        target = printable(entry.target)
        raise UserError(f"{field}: {printable(name)} is a link that leads nowhere ({target}); mend or remove it")
    if is_literal and entry.kind == "folder":
        folder = pattern.rstrip("/")
        raise UserError(
            f"{field}: {pattern} is a folder; write {folder}/* for the files in it, or {folder}/**/* for those in "
            "its folders too"
        )
    if is_literal and entry.kind == "other":
        raise UserError(f"{field}: {pattern} is not a regular file")


def _hint(pattern: str, found: dict[str, Entry]) -> str:
    if any(entry.kind == "folder" for entry in found.values()):
        return f" but folders do; write {pattern.rstrip('/')}/* for the files in them"
    scheme, _, rest = pattern.partition(":/")
    if "://" not in pattern and rest and not rest.startswith("/") and scheme in SCHEMES:
        return f"; a url is written {scheme}://{rest}"
    return ""


def printable(name: str) -> str:
    """Return the name of a file with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()
