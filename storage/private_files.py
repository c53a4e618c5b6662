"""Private folders and files of one user in a place where others may write: opened by descriptor, never through a link.

Owner and kind are read from the descriptor, not from the name, which rules out races with a replacement.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

FOLDER_MODE, FILE_MODE = 0o700, 0o600
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # opening a pipe does not block


class ForeignError(OSError):
    """A path is not the user's own folder or file."""


@contextmanager
def private_root(path: str, *, make: bool = False) -> Iterator[int]:
    """Yield a descriptor of the user's own folder `path`, as mode 0700. Raises ForeignError, OSError.

    The path to its parent may contain links; the folder itself must not be one. With `make` it is created if missing.
    """
    if make:
        os.makedirs(os.path.dirname(path), exist_ok=True)
    with private_folder(None, path, make=make) as folder:
        yield folder


@contextmanager
def private_folder(parent: int | None, name: str, *, make: bool = False) -> Iterator[int]:
    """Yield a descriptor of the user's own folder `name` in an opened one."""
    if make:
        with suppress(FileExistsError):
            os.mkdir(name, FOLDER_MODE, dir_fd=parent)
    descriptor = _opened(name, _FOLDER, parent)
    try:
        mode = _own(descriptor, name)
        if mode & 0o077:
            _close_to_others(descriptor, mode)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def private_file(folder: int, name: str, flags: int) -> Iterator[IO[bytes]]:
    """Yield the user's own regular file `name` in an opened folder, opened as `flags` say.

    A file with other hard links is refused when opened for writing: it may be another user's target.
    """
    descriptor = _opened(name, flags | _FILE, folder)
    try:
        mode = _own(descriptor, name)
        if not stat.S_ISREG(mode):
            raise ForeignError(errno.EINVAL, "is not a regular file", name)
        if flags & (os.O_WRONLY | os.O_RDWR) and os.fstat(descriptor).st_nlink > 1:
            raise ForeignError(errno.EMLINK, "is linked to from elsewhere", name)
    except BaseException:
        os.close(descriptor)
        raise
    with open(descriptor, "a+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb") as file:
        yield file


def _close_to_others(descriptor: int, mode: int) -> None:
    try:
        os.fchmod(descriptor, FOLDER_MODE)
    except OSError:
        if mode & 0o022:  # readable by others is acceptable, as on a read-only disk
            raise


def _opened(name: str, flags: int, folder: int | None) -> int:
    try:
        return os.open(name, flags, FILE_MODE, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP or (error.errno == errno.ENOTDIR and os.path.islink(name)):
            raise ForeignError(error.errno, "is a symbolic link", name) from error
        raise


def _own(descriptor: int, name: str) -> int:
    """Return the mode of an open descriptor. Raises ForeignError when another user owns it."""
    status = os.fstat(descriptor)
    if status.st_uid != os.geteuid():
        raise ForeignError(errno.EPERM, f"belongs to another user (uid {status.st_uid}, not {os.geteuid()})", name)
    return status.st_mode
