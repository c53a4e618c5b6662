"""Files of this machine: each function is one try of one operation on the very path that it is given.

Only regular files and folders exist here: what is read may have been handed over by somebody else, and a device or a
pipe under the name of a file would be read for ever. Symbolic links to regular files are read. Below the folder that a
store was opened at nothing is written or deleted through links to folders: they may lead to a neighbour's.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lexray.storage.errors import UserError


@contextmanager
def opened(full: str) -> Iterator[tuple[int, int]]:
    """Yield descriptor and size of a regular file; opening a pipe waits for nobody. Raises FileNotFoundError."""
    descriptor = os.open(full, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FileNotFoundError(errno.ENOENT, "is not a regular file", full)
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def info(_: Any, full: str) -> dict[str, Any] | None:
    """Return type and size of a regular file or folder, None for anything else."""
    try:
        status = os.stat(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if stat.S_ISREG(status.st_mode):
        return {"type": "file", "size": status.st_size}
    return {"type": "directory", "size": 0} if stat.S_ISDIR(status.st_mode) else None


def entries(_: Any, full: str) -> list[tuple[str, str]]:
    """Return names and kinds (`file`, `directory`) of what lies directly in a folder."""
    try:
        with os.scandir(full) as found:
            kinds = [(entry.name, "directory" if entry.is_dir() else "file", entry) for entry in found]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(name, kind) for name, kind, entry in kinds if kind == "directory" or entry.is_file()]


def read_range(full: str, start: int = 0, length: int = sys.maxsize) -> bytes:
    """Return `length` bytes from `start`, the whole file by default; fewer at the end, never more than there are."""
    with opened(full) as (descriptor, size):
        data = bytearray(max(0, min(length, size - start)))
        count = _fill(descriptor, start, memoryview(data))
    return bytes(memoryview(data)[:count])


def read_into(full: str, start: int, out: memoryview) -> int:
    """Fill `out` from a file; return how many bytes there were."""
    with opened(full) as (descriptor, size):
        return _fill(descriptor, start, out[: max(0, size - start)])


def _fill(descriptor: int, start: int, out: memoryview) -> int:
    end = 0
    while end < len(out) and (count := os.preadv(descriptor, [out[end:]], start + end)):
        end += count
    return end


def write(base: str, full: str, data: bytes) -> None:
    """Write beside and rename. A link of the file's name is replaced, not followed."""
    _check_no_links(base, os.path.dirname(full))
    os.makedirs(os.path.dirname(full), exist_ok=True)
    partial = f"{full}.{os.getpid()}-{uuid.uuid4().hex[:12]}.partial"
    try:
        with open(partial, "xb") as file:
            file.write(data)
        os.replace(partial, full)
    except BaseException:
        with suppress(FileNotFoundError):
            os.remove(partial)
        raise


def remove(base: str, full: str) -> None:
    """Remove a file, a link itself, or a folder with everything in it; nothing happens when it is not there."""
    _check_no_links(base, os.path.dirname(full))
    try:
        if stat.S_ISDIR(os.lstat(full).st_mode):
            shutil.rmtree(full)
        else:
            os.remove(full)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.lexists(full):
            raise


def _check_no_links(base: str, folder: str) -> None:
    """Raise UserError when the way from `base` down to `folder` leads through a symbolic link."""
    while len(folder) > len(base):
        if os.path.islink(folder):
            raise UserError(
                f"{folder}: is a symbolic link to {os.readlink(folder)}; lexray writes and deletes nothing through "
                "links below its output: replace it by the folder itself"
            )
        folder = os.path.dirname(folder)
