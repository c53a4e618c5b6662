"""Chunks on a local disk, below the object store: read once, then shared by every stream of the machine.

    DIR/lexray-chunks/DATASET/SITE/00000017.chunk     the bytes of one site's chunk 17, as they lie in the store
    DIR/lexray-chunks/usage                           bytes that all chunks take together; its lock is the cache's

Any number of processes may use one folder, at once or one after the other. A file appears whole (renamed into place)
and is trusted by nobody: who reads a chunk compares its checksum with the manifest. What is over the limit is removed,
chunks used longest ago first. `usage` is written before the file that it counts, so that a process that is killed in
between makes the cache seem fuller than it is, never emptier; the next clearing counts afresh.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

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
    def path(self) -> str:
        return os.path.join(self.dataset_id, quote(self.site, safe=""), f"{self.chunk:08d}{SUFFIX}")


class ChunkCache:
    """One process's way to the chunks in a folder. A disk that is full or cannot be written ends the adding, once and
    with one logged line; what is there is still read."""

    def __init__(self, settings: CacheSettings) -> None:
        self.settings = settings
        self._root = os.path.join(os.path.abspath(os.path.expanduser(settings.dir)), FOLDER)
        self._adding, self._lock = True, threading.Lock()

    def read(self, name: ChunkName) -> bytes | None:
        """The bytes as they were once added, None when they are not there; to be verified."""
        path = os.path.join(self._root, name.path)
        try:
            with open(path, "rb") as file:
                data = file.read()
            os.utime(path)  # used now: it goes last
        except OSError:
            return None
        return data

    def add(self, name: ChunkName, data: bytes | memoryview) -> None:
        """Keep a verified chunk, if it can be kept."""
        size = len(data)
        if not self._adding or size > self.settings.bytes:
            return
        try:
            with self._usage() as usage:
                self._make_room(usage, size)
                _write_whole(os.path.join(self._root, name.path), data)
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
        with suppress(OSError):
            os.remove(os.path.join(self._root, name.path))

    @contextmanager
    def _usage(self) -> Iterator[BinaryIO]:
        """The file of the bytes in use, locked against other threads and processes."""
        os.makedirs(self._root, exist_ok=True)
        with open(os.path.join(self._root, "usage"), "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
            yield file

    def _make_room(self, usage: BinaryIO, size: int) -> None:
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
        for folder, _, files in os.walk(self._root):
            for file in files:
                path = os.path.join(folder, file)
                if file.endswith(PARTIAL):
                    os.remove(path)  # of a process that died: whoever lives and writes holds the lock
                elif file.endswith(SUFFIX):
                    with suppress(FileNotFoundError):
                        status = os.stat(path)
                        found.append((status.st_mtime_ns, status.st_size, path))
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= limit:
                break
            with suppress(FileNotFoundError):
                os.remove(path)
            used -= size
        return used


def _write_whole(path: str, data: bytes | memoryview) -> None:
    partial = path + PARTIAL
    os.makedirs(os.path.dirname(path), exist_ok=True)
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            os.remove(partial)
        raise
