"""Chunks on a local disk, below the object store: read once, then shared by every stream of the machine.

    DIR/lexray-chunks/DATASET/SITE/00000017.chunk     the bytes of one site's chunk 17, as they lie in the store
    DIR/lexray-chunks/usage                           bytes that all chunks take together; its lock is the cache's

Any number of a user's processes may use one folder, at once or one after the other. A file appears whole (renamed into
place) and is trusted by nobody: who reads a chunk compares its checksum with the manifest. `lexray-chunks` belongs to
the user alone (0700), since DIR may be writable for everybody, like /tmp: a folder that another user made, or a link in
its place, is not used. Everything below is reached from its descriptor, one name at a time, and no link is followed.

What is over the limit is removed, chunks used longest ago first. `usage` is written before the file that it counts, so
that a process that is killed in between makes the cache seem fuller than it is, never emptier; the next clearing counts
afresh.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, NamedTuple
from urllib.parse import quote

from lexray.storage.private_files import private_file, private_folder, private_root

log = logging.getLogger("lexray")

FOLDER, SUFFIX, PARTIAL = "lexray-chunks", ".chunk", ".partial"
CLEARED_SHARE = 0.1
"""Share of the limit that a clearing leaves free, so that it does not follow every chunk."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """Where chunks are kept, and how many."""

    dir: str
    """Folder on a local disk."""
    bytes: int
    """Bytes that all chunks in it may take together, whichever process put them there."""


class ChunkName(NamedTuple):
    """Names one site's bytes of one chunk, whatever its dataset's url is."""

    dataset_id: str
    site: str
    chunk: int

    @property
    def folders(self) -> tuple[str, str]:
        return _folder_name(self.dataset_id), _folder_name(self.site)

    @property
    def file(self) -> str:
        return f"{self.chunk:08d}{SUFFIX}"


class ChunkCache:
    """One process's way to the chunks in a folder. A disk that is full or cannot be written ends the adding, once and
    with one logged line; what is there is still read."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self._root = os.path.join(os.path.abspath(os.path.expanduser(settings.dir)), FOLDER)
        self._adding, self._lock = True, threading.Lock()

    def read(self, name: ChunkName) -> bytes | None:
        """The bytes as they were once added, None when they are not there; to be verified."""
        try:
            with self._folder(name) as folder, private_file(folder, name.file, os.O_RDONLY) as file:
                data = file.read()
                os.utime(file.fileno())  # used now: it goes last
        except OSError:
            return None
        return data

    def add(self, name: ChunkName, data: bytes | memoryview) -> None:
        """Keep a verified chunk, if it can be kept."""
        size = len(data)
        if not self._adding or size > self.settings.bytes:
            return
        try:
            with self._usage() as usage, self._folder(name, make=True) as folder:
                self._make_room(usage, size)
                _write_whole(folder, name.file, data)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """Add no more, and say so once: several threads may fail at the same moment."""
        with self._lock:
            was_adding, self._adding = self._adding, False
        if was_adding:
            reason = error.strerror or error
            log.warning("cache.dir %s: no further chunks are kept there (%s)", self.settings.dir, reason)

    def remove(self, name: ChunkName) -> None:
        """Forget a chunk that turned out damaged."""
        with suppress(OSError), self._folder(name) as folder:
            os.remove(name.file, dir_fd=folder)

    @contextmanager
    def _folder(self, name: ChunkName, *, make: bool = False) -> Iterator[int]:
        """Yield a descriptor of the folder that holds a chunk."""
        dataset, site = name.folders
        with (
            private_root(self._root, make=make) as root,
            private_folder(root, dataset, make=make) as inner,
            private_folder(inner, site, make=make) as folder,
        ):
            yield folder

    @contextmanager
    def _usage(self) -> Iterator[IO[bytes]]:
        """The file of the bytes in use, locked against other threads and processes."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        with private_root(self._root, make=True) as root, private_file(root, "usage", flags) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            yield file

    def _make_room(self, usage: IO[bytes], size: int) -> None:
        usage.seek(0)
        written = usage.read()
        used = int(written) if written.isdigit() else self._clear(self.settings.bytes)
        if used + size > self.settings.bytes:
            used = self._clear(min(self.settings.bytes - size, int((1 - CLEARED_SHARE) * self.settings.bytes)))
        usage.truncate(0)
        usage.write(b"%d" % (used + size))
        usage.flush()

    def _clear(self, limit: int) -> int:
        """Remove the chunks used longest ago until those left take at most `limit` bytes; the bytes they take."""
        found = []
        with private_root(self._root) as root:
            for folder, _, files, descriptor in os.fwalk(".", dir_fd=root):
                for file in files:
                    with suppress(FileNotFoundError):
                        if file.endswith(PARTIAL):
                            os.remove(file, dir_fd=descriptor)  # of a process that died: who writes holds the lock
                        elif file.endswith(SUFFIX):
                            status = os.stat(file, dir_fd=descriptor, follow_symlinks=False)
                            found.append((status.st_mtime_ns, status.st_size, os.path.join(folder, file)))
            used = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if used <= limit:
                    break
                with suppress(FileNotFoundError):
                    os.remove(path, dir_fd=root)
                used -= size
        return used


def _folder_name(name: str) -> str:
    """The name of a folder, one for each name; never `.` or `..`."""
    quoted = quote(name, safe="")
    return quoted if quoted.strip(".") else quoted.replace(".", "%2E") or "%"


def _write_whole(folder: int, name: str, data: bytes | memoryview) -> None:
    partial = name + PARTIAL
    with suppress(FileNotFoundError):
        os.remove(partial, dir_fd=folder)
    try:
        with private_file(folder, partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
            file.write(data)
        os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with suppress(OSError):
            os.remove(partial, dir_fd=folder)
        raise
