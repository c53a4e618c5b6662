"""Where rows to import lie: a folder of any store, whose files are opened as local ones.

A file of another store is copied to a temporary file when it is opened, and that name is removed at once: readers map
files into memory, so the copy lives until the last of them lets go, and nothing is left behind however the import ends.
"""

from __future__ import annotations

import os
import shutil
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
"""Bytes of a file that are copied at once."""
EDGE_BYTES = 4 * 2**20
"""Bytes at both ends of a file that hold what it says of its content."""


@dataclass(frozen=True)
class SourceFile:
    """A file below a source. As a string it is what messages call it."""

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
        return PurePosixPath(self.path).suffix

    @cached_property
    def size(self) -> int:
        """Bytes. Raises FileNotFoundError."""
        found = self.store.size(self.path)
        if found is None:
            raise FileNotFoundError(str(self))
        return found

    def read(self) -> bytes:
        """The whole of a small file. Raises FileNotFoundError."""
        return self.store.read(self.path)

    @contextmanager
    def local(self, *, edges: bool = False) -> Iterator[Path]:
        """A local file of the same content, which may be mapped within the block for use after it.

        With `edges` of a file in another store only both ends are copied: zeros lie between them.
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

    @staticmethod
    def at(url: str) -> SourceFolder:
        return SourceFolder(Store.at(url))

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
        """The files directly inside, in the order of their names; hidden ones are none."""
        return [self.file(name) for name in self.store.list_files() if not name.startswith(".")]

    def folders(self) -> list[SourceFolder]:
        """The sub-folders, in the order of their names."""
        return [self.folder(name) for name in self.store.list_folders()]

    def has(self, path: str) -> bool:
        return self.store.exists(path)


def open_source(source: str, output: str) -> SourceFolder:
    """The folder to import from. Raises UserError when it is none, or the output would lie in it."""
    store = Store.at(_real_url(source))
    folder = SourceFolder(store)
    with reachable("SOURCE", store.url):
        empty = not (store.list_files() or store.list_folders())
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
    """The url with symbolic links of this machine followed."""
    store = Store.at(url)
    return store.url if store.local_path is None else f"file://{os.path.realpath(store.local_path)}"
