"""What lexray does with files, on any fsspec filesystem: each function is one try of one operation.

Filesystems keep listings and sizes; they are made to forget them first, so that every answer is of now.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from contextlib import suppress
from typing import Any


def info(filesystem: Any, full: str) -> dict[str, Any] | None:
    """What the store knows of a file or folder, asked afresh."""
    filesystem.invalidate_cache()
    try:
        found: dict[str, Any] = filesystem.info(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def list_entries(filesystem: Any, full: str) -> list[dict[str, Any]]:
    filesystem.invalidate_cache()
    try:
        entries: list[dict[str, Any]] = filesystem.ls(full, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return entries


def remove(filesystem: Any, full: str) -> None:
    if info(filesystem, full) is None:
        return
    with suppress(FileNotFoundError):  # another try, whose answer was lost, has removed it
        filesystem.rm(full, recursive=True)
    if info(filesystem, full) is not None:  # s3fs does not tell which keys a store refused to delete
        raise OSError(errno.EBUSY, "is still there after its deletion")


def read_local_into(full: str, start: int, out: memoryview) -> int:
    """Fill `out` from a file; how many bytes there were."""
    with open(full, "rb", buffering=0) as file:
        file.seek(start)
        end = 0
        while end < len(out) and (count := file.readinto(out[end:])):
            end += count
    return end


def cat_into(filesystem: Any, full: str, start: int, out: memoryview) -> int:
    """The same from any filesystem."""
    data: bytes = filesystem.cat_file(full, start=start, end=start + len(out))
    out[: len(data)] = data[: len(out)]
    return len(data)


def write_local(full: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(full), exist_ok=True)
    partial = f"{full}.{os.getpid()}.{threading.get_ident()}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, full)
    except BaseException:
        if os.path.exists(partial):
            os.remove(partial)
        raise


def write_beside(filesystem: Any, full: str, data: bytes) -> None:
    """Write under another name and rename, where a file that is being written can be seen."""
    partial = f"{full}.{uuid.uuid4().hex}.partial"
    filesystem.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
    try:
        filesystem.pipe_file(partial, data)
        filesystem.mv(partial, full)
    except BaseException:
        with suppress(FileNotFoundError):
            filesystem.rm_file(partial)
        raise
