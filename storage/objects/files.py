"""What lexray does with files on other fsspec filesystems: each function is one try of one operation.

Only methods of fsspec are called that take a path as it is: `rm`, `copy` and `mv` expand globs. Filesystems keep
listings and sizes; they are made to forget them first, so that every answer is of now.
"""

from __future__ import annotations

import errno
import uuid
from contextlib import suppress
from typing import Any

_EXPANDED = frozenset("*?[")


def info(filesystem: Any, full: str) -> dict[str, Any] | None:
    """Return what the store knows of a file or folder, asked afresh; None when it is not there."""
    filesystem.invalidate_cache()
    try:
        found: dict[str, Any] = filesystem.info(full)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found


def list_entries(filesystem: Any, full: str) -> list[dict[str, Any]]:
    """Return what the store knows (`name`, `type`, `size`) of all that lies directly in a folder, asked afresh."""
    filesystem.invalidate_cache()
    try:
        found: list[dict[str, Any]] = filesystem.ls(full, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return found


def entries(filesystem: Any, full: str) -> list[tuple[str, str]]:
    """Return names and kinds (`file`, `directory`) of what lies directly in a folder."""
    found = list_entries(filesystem, full)
    return [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in found]


def read(filesystem: Any, full: str) -> bytes:
    """Return the whole file."""
    data: bytes = filesystem.cat_file(full)
    return data


def remove(filesystem: Any, full: str) -> None:
    """Remove a file, or a folder and everything in it, the deepest first."""
    found = info(filesystem, full)
    if found is None:
        return
    if found["type"] == "directory":
        below = filesystem.find(full, withdirs=True, detail=True)
        for name, entry in sorted(below.items(), key=lambda item: -item[0].count("/")):
            if name.rstrip("/") != found["name"].rstrip("/"):
                _remove_one(filesystem, name, entry["type"])
    _remove_one(filesystem, full, found["type"])
    if info(filesystem, full) is not None:  # some stores do not say what they refused to delete
        raise OSError(errno.EBUSY, "is still there after its deletion")


def _remove_one(filesystem: Any, name: str, kind: str) -> None:
    with suppress(FileNotFoundError):  # another try, whose answer was lost, has removed it; a prefix is no folder
        if kind == "directory":
            with suppress(NotImplementedError):  # where folders are prefixes alone
                filesystem.rmdir(name)
        else:
            filesystem.rm_file(name)


def cat_into(filesystem: Any, full: str, start: int, out: memoryview) -> int:
    """Fill `out` from any filesystem; return how many bytes arrived."""
    data: bytes = filesystem.cat_file(full, start=start, end=start + len(out))
    out[: len(data)] = data[: len(out)]
    return len(data)


def write_beside(filesystem: Any, full: str, data: bytes) -> None:
    """Write under another name and rename, where a file that is being written can be seen."""
    if _EXPANDED & set(full):
        raise OSError(errno.EINVAL, "names with `*`, `?` or `[` cannot be renamed exactly there")
    partial = f"{full}.{uuid.uuid4().hex}.partial"
    filesystem.makedirs(full.rsplit("/", 1)[0], exist_ok=True)
    try:
        filesystem.pipe_file(partial, data)
        filesystem.mv(partial, full)
    except BaseException:
        with suppress(FileNotFoundError):
            filesystem.rm_file(partial)
        raise
