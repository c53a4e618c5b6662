"""Source folder of an import, in any store; its files are opened as local ones.

A file of another store is copied to a temporary file on opening, which is unlinked at once: readers map files into
memory, so the copy lives until the last of them releases it, and nothing is left behind however the import ends.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO

from lexray.storage.errors import UserError
from lexray.storage.manifest import MANIFEST
from lexray.storage.store import Store, reachable

COPY_BYTES = 64 * 2**20
"""Bytes of a file that are copied per read."""
EDGE_BYTES = 4 * 2**20
"""Bytes at both ends of a file that hold its headers and indices."""


@dataclass(frozen=True)
class SourceFile:
    """A file below a source. Its string is its name in messages."""

    store: Store
    path: str

    def __str__(self) -> str:
        root = self.store.local_path
        return f"{self.store.url if root is None else root}/{self.path}"

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        """Suffix of the name in lower case."""
        return PurePosixPath(self.path).suffix.lower()

    @property
    def stem(self) -> str:
        return PurePosixPath(self.path).stem

    @property
    def folder_name(self) -> str:
        return str(self).rsplit("/", 2)[-2]

    @cached_property
    def size(self) -> int:
        """Return the size in bytes. Raises FileNotFoundError."""
        found = self.store.size(self.path)
        if found is None:
            raise FileNotFoundError(str(self))
        return found

    def read(self) -> bytes:
        """Read the whole of a small file. Raises FileNotFoundError."""
        return self.store.read(self.path)

    @contextmanager
    def local(self, *, edges: bool = False) -> Iterator[Path]:
        """Yield a local file of the same content; mappings made inside the context stay valid after it.

        With `edges` only both ends of a file in another store are copied, with zeros between them.
        """
        if self.store.local_path is not None:
            yield Path(str(self))
            return
        with tempfile.NamedTemporaryFile(prefix="lexray-import-", suffix=self.suffix) as copy:
            if not edges or self.size <= 2 * EDGE_BYTES:
                self._check_space(copy.name)
                self._copy(copy, 0, self.size)
            else:
                self._copy(copy, 0, EDGE_BYTES)
                self._copy(copy, self.size - EDGE_BYTES, self.size)
            yield Path(copy.name)

    def _copy(self, copy: IO[bytes], begin: int, end: int) -> None:
        copy.seek(begin)
        for start in range(begin, end, COPY_BYTES):
            copy.write(self.store.read_range(self.path, start, min(COPY_BYTES, end - start)))
        copy.flush()
        if copy.tell() != end:
            raise UserError(f"{self}: was replaced while it was copied; import again")

    def _check_space(self, place: str) -> None:
        free = shutil.disk_usage(os.path.dirname(place)).free
        if free < self.size:
            raise UserError(
                f"{self}: {self.size:,} bytes, but {os.path.dirname(place)} has {free:,} free for a copy; "
                "set TMPDIR to a larger disk"
            )


@dataclass(frozen=True)
class SourceFolder:
    """A folder to import from."""

    store: Store

    def __str__(self) -> str:
        return self.store.local_path or self.store.url

    @property
    def name(self) -> str:
        return self.store.url.rsplit("/", 1)[-1]

    def file(self, path: str) -> SourceFile:
        return SourceFile(self.store, path)

    def folder(self, name: str) -> SourceFolder:
        return SourceFolder(self.store.at_path(name))

    def files(self) -> list[SourceFile]:
        """Return the files directly inside, including links, sorted by name, without hidden ones."""
        return [self.file(name) for name in self._names("file")]

    def folders(self) -> list[SourceFolder]:
        """Return the subfolders, including links, sorted by name, without hidden ones."""
        return [self.folder(name) for name in self._names("folder")]

    def _names(self, kind: str) -> list[str]:
        """Return the names of the files or folders inside, links resolved. Raises UserError for broken links."""
        root = self.store.local_path
        if root is None:
            listed = self.store.list_files() if kind == "file" else self.store.list_folders()
            return [name for name in listed if not _is_hidden(name)]
        if not os.path.isdir(root):
            return []
        with reachable("SOURCE", self.store.url):
            names = sorted(name for name in os.listdir(root) if not _is_hidden(name))
        kinds = [_entry_kind(f"{root}/{name}") for name in names]  # of all: a broken link of any kind is refused
        return [name for name, found in zip(names, kinds, strict=True) if found == kind]


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _entry_kind(path: str) -> str:
    """Return `file` or `folder`. Raises UserError for broken links, loops of links, and devices."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if not os.path.islink(path):
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        what = "loops" if error.errno == errno.ELOOP else "cannot be followed"
        what = "does not exist" if error.errno == errno.ENOENT else what
        raise UserError(
            f"{path}: is a link to {os.readlink(path)}, which {what}; download the file again or remove the link"
        ) from error
    if stat.S_ISDIR(mode):
        return "folder"
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is neither a file nor a folder but a device or pipe; remove it from SOURCE")
    return "file"


def open_source(source: str, output: str) -> SourceFolder:
    """Open the folder to import from. Raises UserError when it is not a folder, or would contain the output."""
    store = Store.at(_real_url(source))
    folder = SourceFolder(store)
    with reachable("SOURCE", store.url):
        empty = not (folder.files() or folder.folders())
        if store.local_path is not None and not os.path.isdir(store.local_path):
            raise UserError(f"SOURCE: {folder} is not a folder; give the folder that holds the tensor files")
        if empty and store.local_path is None:
            raise UserError(f"SOURCE: {folder} holds no file; give the folder that holds the tensor files")
        if store.exists(MANIFEST):
            raise UserError(
                f"SOURCE: {folder} holds {MANIFEST}, so it is a dataset already; there is nothing to import"
            )
    if f"{_real_url(output)}/".startswith(f"{store.url}/"):
        raise UserError(f"output: {output} lies in SOURCE {folder}; choose a place outside")
    return folder


def _real_url(url: str) -> str:
    """Return the url with local symbolic links resolved."""
    store = Store.at(url)
    return store.url if store.local_path is None else f"file://{os.path.realpath(store.local_path)}"
