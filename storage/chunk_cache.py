"""Cache of chunks on a local disk: read once from the object store, then shared by every stream of the machine.

    DIR/lexray-chunks/DATASET/SITE/00000017.chunk     the bytes of one site's chunk 17, as stored
    DIR/lexray-chunks/usage                           total bytes of all chunks; its lock is the cache's

Any number of a user's processes may use one folder, at once or one after the other. A file appears complete (renamed
into place) and is not trusted: readers compare a chunk's checksum with the manifest. `lexray-chunks` belongs to
the user alone (0700), since DIR may be writable for everybody, like /tmp: a folder that another user made, or a link in
its place, is not used. Everything below is reached from its descriptor, one name at a time, and no link is followed.

Above the limit, chunks are evicted in LRU order. `usage` is written before the file that it counts, so that a process
killed in between makes the cache seem fuller than it is, never emptier; the next eviction recounts.
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

from lexray.storage.file_settings import Count, FileSettings
from lexray.storage.private_files import private_file, private_folder, private_root

log = logging.getLogger("lexray")

FOLDER, SUFFIX, PARTIAL = "lexray-chunks", ".chunk", ".partial"
CLEARED_SHARE = 0.1
"""Share of the limit that an eviction leaves free, so that not every chunk triggers one."""


@dataclass(frozen=True, kw_only=True)
class CacheSettings(FileSettings):
    """Chunks of the dataset kept on a local disk of each node, for this sweep and later ones. Off by default."""

    dir: str
    """Folder on a disk of the node itself; one for all sweeps, whichever datasets they read."""
    bytes: Count
    """Bytes that the chunks in it may take together, whichever process put them there; those used longest ago make
    room."""


class ChunkName(NamedTuple):
    """Key of one site's bytes of one chunk, independent of the dataset's url."""

    dataset_id: str
    site: str
    chunk: int

    @property
    def file(self) -> str:
        return f"{self.chunk:08d}{SUFFIX}"


class ChunkCache:
    """One process's access to the chunks in a folder.

    When the disk is full or not writable, adding stops with one logged line; existing chunks are still read."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self._root = os.path.join(os.path.abspath(os.path.expanduser(settings.dir)), FOLDER)
        self._adding, self._lock = True, threading.Lock()

    def read(self, name: ChunkName) -> bytes | None:
        """Return the bytes as they were added, unverified; None when missing."""
        try:
            with self._folder(name) as folder, private_file(folder, name.file, os.O_RDONLY) as file:
                data = file.read()
                os.utime(file.fileno())  # mark as most recently used
        except OSError:
            return None
        return data

    def add(self, name: ChunkName, data: bytes | memoryview) -> None:
        """Add a verified chunk, if possible."""
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
        """Stop adding and log it once: several threads may fail at the same moment."""
        with self._lock:
            was_adding, self._adding = self._adding, False
        if was_adding:
            reason = error.strerror or error
            log.warning("cache.dir %s: no further chunks are kept there (%s)", self.settings.dir, reason)

    def remove(self, name: ChunkName) -> None:
        """Remove a damaged chunk."""
        with suppress(OSError), self._folder(name) as folder:
            os.remove(name.file, dir_fd=folder)

    @contextmanager
    def _folder(self, name: ChunkName, *, make: bool = False) -> Iterator[int]:
        """Yield a descriptor of the folder that holds a chunk."""
        with (
            private_root(self._root, make=make) as root,
            private_folder(root, _folder_name(name.dataset_id), make=make) as inner,
            private_folder(inner, _folder_name(name.site), make=make) as folder,
        ):
            yield folder

    @contextmanager
    def _usage(self) -> Iterator[IO[bytes]]:
        """Yield the file of the bytes in use, locked against other threads and processes."""
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
        """Evict least recently used chunks down to `limit` bytes; return the bytes that remain."""
        found = []
        with private_root(self._root) as root:
            for folder, _, files, descriptor in os.fwalk(".", dir_fd=root):
                for file in files:
                    with suppress(FileNotFoundError):
                        if file.endswith(PARTIAL):
                            os.remove(file, dir_fd=descriptor)  # left by a process that died: writers hold the lock
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
    """Return the folder name of a dataset or site, unique per name; never `.` or `..`."""
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
