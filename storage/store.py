"""A folder somewhere (`file://`, `s3://`, any fsspec scheme) and the few operations lexray needs of it.

Only a `Store`'s settings ever cross a process boundary: the filesystem behind it is built on first use in each process,
keyed by pid, because s3fs must not be used after a fork. Listing caches are off: a name is either read through a
manifest or listed afresh. Every call goes through `lexray.storage.objects.retries`, and a process has a bounded number
in flight.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from lexray.storage.errors import UnreachableError, UserError
from lexray.storage.objects.connections import CLIENT, FILESYSTEM, call_slots, connection, forget, known_schemes
from lexray.storage.objects.files import (
    cat_into,
    info,
    list_entries,
    read_local_into,
    remove,
    write_beside,
    write_local,
)
from lexray.storage.objects.first_answer import first_answer
from lexray.storage.objects.multipart import PART_BYTES, upload_parts
from lexray.storage.objects.retries import (
    Retrier,
    RetryPolicy,
    StoreUnavailableError,
    is_of_botocore,
    reason,
    s3_answer,
)
from lexray.storage.objects.settings import REQUESTS_IN_FLIGHT, S3
from lexray.storage.objects.settings import StorageSettings as StorageSettings

T = TypeVar("T")

ABORT_BUDGET_S = 5.0
ATOMIC = (*S3, "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory")
"""Schemes whose files appear whole when written at once; elsewhere files are written beside and renamed."""


@dataclass(frozen=True)
class Store:
    """The files below `url`. Paths are relative, `/`-separated strings."""

    url: str
    settings: StorageSettings = field(default_factory=StorageSettings)

    @staticmethod
    def at(url: str, settings: StorageSettings | None = None) -> Store:
        """A store whose url holds everywhere: local paths become absolute `file://` urls."""
        scheme = url.split("://", 1)[0] if "://" in url else "file"
        if scheme == "file":
            url = "file://" + os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
        elif scheme not in known_schemes():
            raise UserError(f"url {url!r}: no storage scheme is called {scheme!r}; use a path, file:// or s3://")
        return Store(url.rstrip("/"), settings or StorageSettings())

    @property
    def scheme(self) -> str:
        return self.url.split("://", 1)[0]

    @property
    def local_path(self) -> str | None:
        """The folder on this machine, or None for an object store."""
        return self.url.removeprefix("file://") if self.scheme == "file" else None

    def at_path(self, path: str) -> Store:
        """The store of a sub-folder."""
        return Store(f"{self.url}/{path}", self.settings)

    @property
    def filesystem(self) -> Any:
        """This process's fsspec filesystem."""
        return connection(FILESYSTEM, self.scheme, self.settings)

    def _full(self, path: str) -> str:
        root = self.local_path if self.local_path is not None else self.url
        return f"{root}/{path}" if path else root

    def _call(
        self, path: str, action: Callable[[Any], T], *, kind: str = FILESYSTEM, policy: RetryPolicy | None = None
    ) -> T:
        """`action` of the filesystem (or client), retried; no more than REQUESTS_IN_FLIGHT at a time."""
        used: list[Any] = []

        def once() -> T:
            with call_slots():
                used[:] = [connection(kind, self.scheme, self.settings)]
                return action(used[0])

        def renew() -> None:
            forget(kind, self.scheme, self.settings, used)

        name = f"{self.url}/{path}".rstrip("/")
        retrier = Retrier(policy=policy or self.settings.policy)

        def patient() -> T:
            return retrier.call(name, once, renew=renew)

        if self.local_path is not None:
            return patient()
        return first_answer((self.scheme, self.settings), name, once, patient, retrier.policy.budget_s)

    def read(self, path: str) -> bytes:
        """The whole file; a large one of an object store in parts, side by side. Raises FileNotFoundError."""
        if self.local_path is not None:
            data: bytes = self._call(path, lambda fs: fs.cat_file(self._full(path)))
            return data
        first = self.read_range(path, 0, PART_BYTES)
        size = self.size(path) if len(first) == PART_BYTES else len(first)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "was removed while it was read", self._full(path))
        starts = range(PART_BYTES, size, PART_BYTES)
        if not starts:
            return first
        with ThreadPoolExecutor(min(len(starts), REQUESTS_IN_FLIGHT), thread_name_prefix="parts") as pool:
            rest = list(pool.map(lambda start: self.read_range(path, start, PART_BYTES), starts))
        data = b"".join([first, *rest])
        if len(data) != size:
            raise OSError(errno.ESTALE, "was replaced while it was read", self._full(path))
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end of the file."""
        if not length:
            return b""
        full = self._full(path)
        if self._has_client:
            place = _bucket_and_key(full)
            return self._ranged(path, start, b"", lambda client: client.get_range(*place, start, length))
        return self._ranged(path, start, b"", lambda fs: fs.cat_file(full, start=start, end=start + length))

    def read_range_into(self, path: str, start: int, out: memoryview) -> int:
        """The same, without a copy in between, into `out`, as many as it has room for; how many bytes came.

        More than `out` has room for means that the store ignores ranges.
        """
        if not len(out):
            return 0
        full = self._full(path)
        if self._has_client:
            place = _bucket_and_key(full)
            return self._ranged(path, start, 0, lambda client: client.get_range_into(*place, start, out))
        if self.local_path is not None:
            return self._ranged(path, start, 0, lambda _: read_local_into(full, start, out))
        return self._ranged(path, start, 0, lambda fs: cat_into(fs, full, start, out))

    def _ranged(self, path: str, start: int, nothing: T, action: Callable[[Any], T]) -> T:
        """`action` of the filesystem, or of the client for ranges; `nothing` for a range behind the end."""
        kind = CLIENT if self._has_client else FILESYSTEM
        try:
            return self._call(path, action, kind=kind)
        except (FileNotFoundError, PermissionError, StoreUnavailableError):
            raise
        except OSError as error:  # object stores refuse a range that begins behind the end
            refusal = s3_answer(error)[0]
            if refusal not in (None, "InvalidRange", "416"):
                raise
            if (self.size(path) or 0) <= start:
                return nothing
            if refusal is None:
                raise
            return self._call(path, action, kind=kind)  # a shorter file was replaced meanwhile

    @property
    def _has_client(self) -> bool:
        """Whether ranges are read by a client of their own, see `lexray.storage.objects.s3_client`."""
        bucket = self.url.split("://", 1)[-1]
        return self.scheme in S3 and self.settings.options == "{}" and not bucket.startswith("arn:")

    def write(self, path: str, data: bytes) -> None:
        """The file appears whole or not at all."""
        full = self._full(path)
        if self.local_path is not None:
            self._call(path, lambda fs: write_local(full, data))
        elif self.scheme in S3 and len(data) >= 2 * PART_BYTES:
            self._write_parts(path, data)
        elif self.scheme in ATOMIC:
            self._call(path, lambda fs: fs.pipe_file(full, data))
        else:
            self._call(path, lambda fs: write_beside(fs, full, data))

    def _write_parts(self, path: str, data: bytes) -> None:
        brief = replace(self.settings.policy, budget_s=min(ABORT_BUDGET_S, self.settings.policy.budget_s))

        def call_s3(method: str, **arguments: Any) -> Any:
            return self._call(path, lambda fs: fs.call_s3(method, **arguments))

        def give_up(method: str, **arguments: Any) -> Any:
            return self._call(path, lambda fs: fs.call_s3(method, **arguments), policy=brief)

        bucket, key, _ = self.filesystem.split_path(self._full(path))
        whole = Retrier(policy=self.settings.policy)
        whole.call(self._full(path), lambda: upload_parts(call_s3, give_up, bucket, key, data, part_bytes=PART_BYTES))

    def size(self, path: str) -> int | None:
        """Bytes of the file, None when it is not there."""
        found = self._call(path, lambda fs: info(fs, self._full(path)))
        return None if found is None else int(found["size"])

    def exists(self, path: str) -> bool:
        return self._call(path, lambda fs: info(fs, self._full(path))) is not None

    def list_folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, sorted; empty when there is nothing."""
        return [name for name, kind in self._entries(path) if kind == "directory"]

    def list_files(self, path: str = "") -> list[str]:
        """Names of the files directly below `path`, sorted; empty when there is nothing."""
        return [name for name, kind in self._entries(path) if kind == "file"]

    def _entries(self, path: str) -> list[tuple[str, str]]:
        entries = self._call(path, lambda fs: list_entries(fs, self._full(path)))
        return sorted((entry["name"].rstrip("/").rsplit("/", 1)[-1], entry["type"]) for entry in entries)

    def delete(self, path: str) -> None:
        """Remove a file or folder; nothing happens when it is not there."""
        self._call(path, lambda fs: remove(fs, self._full(path)))

    def check_writable(self, what: str) -> None:
        """Raise UserError naming `what` unless a file can be written here (and leave nothing behind)."""
        probe = f".lexray-write-check-{os.getpid()}"
        created = self._first_missing_folder()
        try:
            self.write(probe, b"")
            self.delete(probe)
        except Exception as error:
            raise UnreachableError(
                f"{what}: cannot write to {self.url} ({reason(error)}); choose another place"
            ) from error
        finally:
            if created is not None and os.path.isdir(created):
                _remove_empty_folders(self.local_path, created)

    def _first_missing_folder(self) -> str | None:
        path, missing = self.local_path, None
        while path and not os.path.exists(path):
            missing, path = path, os.path.dirname(path)
        return missing


def _bucket_and_key(full: str) -> tuple[str, str]:
    bucket, _, key = full.split("://", 1)[-1].partition("/")
    return bucket, key


@contextmanager
def reachable(what: str, url: str) -> Iterator[None]:
    """Turn a store that cannot be reached, or refuses us, into one line for the user."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:
        if not isinstance(error, OSError | ImportError) and not is_of_botocore(error):
            raise
        raise UnreachableError(f"{what}: cannot read {url} ({reason(error)})") from error


def _remove_empty_folders(path: str | None, up_to: str) -> None:
    while path and len(path) >= len(up_to) and os.path.isdir(path) and not os.listdir(path):
        os.rmdir(path)
        path = os.path.dirname(path)
