"""Operations on fsspec filesystems: each function is one attempt of one operation.

Only methods of fsspec that take literal paths are called: `rm`, `copy` and `mv` expand globs. Filesystems cache
listings and sizes; caches are invalidated first, so that results are current.
"""

from __future__ import annotations

import errno
import uuid
from contextlib import suppress
from typing import Any

_EXPANDED = frozenset("*?[")


def info(filesystem: Any, full: str) -> dict[str, Any] | None:
    """Return the store's entry of a file or folder, uncached; None when missing."""
    filesystem.invalidate_cache()
    try:
        return filesystem.info(full)
    except (FileNotFoundError, NotADirectoryError):
        return None


def list_entries(filesystem: Any, full: str) -> list[dict[str, Any]]:
    """Return the store's entries (`name`, `type`, `size`) directly in a folder, uncached."""
    filesystem.invalidate_cache()
    try:
        return filesystem.ls(full, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []


def entries(filesystem: Any, full: str) -> list[tuple[str, str]]:
    """Return names and kinds (`file`, `directory`) of the entries directly in a folder."""
    found = list_entries(filesystem, full)
    return [(entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in found]


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
    if info(filesystem, full) is not None:  # some stores do not report failed deletions
        raise OSError(errno.EBUSY, "is still there after its deletion")


def _remove_one(filesystem: Any, name: str, kind: str) -> None:
    with suppress(FileNotFoundError):  # an attempt whose response was lost removed it; a prefix is no folder
        if kind == "directory":
            with suppress(NotImplementedError):  # where folders are only prefixes
                filesystem.rmdir(name)
        else:
            filesystem.rm_file(name)


def cat_into(filesystem: Any, full: str, start: int, out: memoryview) -> int:
    """Fill `out` from any filesystem; return the number of bytes read."""
    data: bytes = filesystem.cat_file(full, start=start, end=start + len(out))
    out[: len(data)] = data[: len(out)]
    return len(data)


def write_beside(filesystem: Any, full: str, data: bytes) -> None:
    """Write under another name and rename, where partial files are visible."""
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
