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
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from lexray.storage.errors import MissingBucketError, UnreachableError, UserError, one_line
from lexray.storage.objects import files, local_files, s3_objects
from lexray.storage.objects.connections import CLIENT, FILESYSTEM, call_slots, connection, forget
from lexray.storage.objects.first_answer import first_answer
from lexray.storage.objects.places import FILE, check_path, check_url, is_name, scheme_of
from lexray.storage.objects.retries import Retrier, RetryPolicy, StoreUnavailableError, is_of_botocore, s3_answer
from lexray.storage.objects.s3_objects import PART_BYTES, upload_parts
from lexray.storage.objects.settings import REQUESTS_IN_FLIGHT, S3
from lexray.storage.objects.settings import StorageSettings as StorageSettings
from lexray.storage.synthetic_url import SCHEME, parse

T = TypeVar("T")

ABORT_BUDGET_S = 5.0
ATOMIC = (*S3, "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory")
"""Schemes whose files appear whole when written at once; elsewhere files are written beside and renamed."""


@dataclass(frozen=True)
class Store:
    """The files below `url`. Paths are relative, `/`-separated strings."""

    url: str
    settings: StorageSettings = field(default_factory=StorageSettings)
    base: str = field(default="", compare=False)
    """Local folder that this one is a part of; below it no link to a folder is followed when something is written."""

    @staticmethod
    def at(url: str, settings: StorageSettings | None = None) -> Store:
        """Return a store whose url holds everywhere: local paths become absolute `file://` urls.

        Raises UserError for urls and settings that must not or cannot be used, see `lexray.storage.objects.places`.
        """
        scheme, settings = scheme_of(url), settings or StorageSettings()
        if scheme == FILE:
            url = "file://" + os.path.abspath(os.path.expanduser(url.removeprefix("file://")))
        check_url(url, scheme)
        settings.check(scheme, url)
        return Store(parse(url).url if scheme == SCHEME else url.rstrip("/"), settings)

    @property
    def scheme(self) -> str:
        return self.url.split("://", 1)[0]

    @property
    def local_path(self) -> str | None:
        """The folder on this machine, or None for an object store."""
        return self.url.removeprefix("file://") if self.scheme == "file" else None

    def at_path(self, path: str) -> Store:
        """Return the store of a sub-folder."""
        check_path(path, self.scheme)
        return Store(f"{self.url}/{path}", self.settings, self._base)

    @property
    def _base(self) -> str:
        return self.base or self.local_path or ""

    @property
    def _files(self) -> ModuleType:
        """The operations on this scheme's files."""
        return local_files if self.scheme == FILE else s3_objects if self.scheme in S3 else files

    @property
    def filesystem(self) -> Any:
        """This process's fsspec filesystem."""
        return connection(FILESYSTEM, self.scheme, self.settings)

    def _full(self, path: str) -> str:
        if self.scheme == SCHEME:
            raise UserError(f"{self.url}: its rows are generated where they are read; no files can be read or written")
        check_path(path, self.scheme)
        root = self.local_path if self.local_path is not None else self.url
        return f"{root}/{path}" if path else root

    def _call(
        self, path: str, action: Callable[[Any], T], *, kind: str = FILESYSTEM, policy: RetryPolicy | None = None
    ) -> T:
        """`action` of the filesystem (or client), retried; no more than REQUESTS_IN_FLIGHT at a time."""
        used: list[Any] = []

        def once() -> T:
            with call_slots():
                used[:] = [None if self.scheme == FILE else connection(kind, self.scheme, self.settings)]
                return self._answer_of(action, used[0])

        def renew() -> None:
            forget(kind, self.scheme, self.settings, used)

        name = f"{self.url}/{path}".rstrip("/")
        retrier = Retrier(policy=policy or self.settings.policy)

        def patient() -> T:
            return retrier.call(name, once, renew=renew)

        if self.local_path is not None:
            return patient()
        return first_answer((self.scheme, self.settings), name, once, patient, retrier.policy.budget_s)

    def _answer_of(self, action: Callable[[Any], T], used: Any) -> T:
        try:
            return action(used)
        except FileNotFoundError as error:
            if s3_answer(error)[0] != "NoSuchBucket":
                raise
            bucket = self.url.split("://", 1)[1].split("/", 1)[0]
            raise MissingBucketError(f"bucket {bucket!r} does not exist; create it, or correct the url") from error

    def read(self, path: str) -> bytes:
        """Return the whole file; a large one of an object store in parts, side by side. Raises FileNotFoundError."""
        if self.local_path is not None:
            full = self._full(path)
            return self._call(path, lambda _: local_files.read_range(full))
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
            return self._ranged(path, start, b"", lambda client: client.get_range(full, start, length))
        if self.local_path is not None:
            return self._call(path, lambda _: local_files.read_range(full, start, length))
        return self._ranged(path, start, b"", lambda fs: fs.cat_file(full, start=start, end=start + length))

    def read_range_into(self, path: str, start: int, out: memoryview) -> int:
        """The same, without a copy in between, into `out`, as many as it has room for; how many bytes came.

        More than `out` has room for means that the store ignores ranges.
        """
        if not len(out):
            return 0
        full = self._full(path)
        if self._has_client:
            return self._ranged(path, start, 0, lambda client: client.get_range_into(full, start, out))
        if self.local_path is not None:
            return self._call(path, lambda _: local_files.read_into(full, start, out))
        return self._ranged(path, start, 0, lambda fs: files.cat_into(fs, full, start, out))

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
            self._call(path, lambda _: local_files.write(self._base, full, data))
        elif self.scheme in S3 and len(data) >= 2 * PART_BYTES:
            self._write_parts(path, data)
        elif self.scheme in ATOMIC:
            self._call(path, lambda fs: fs.pipe_file(full, data))
        else:
            self._call(path, lambda fs: files.write_beside(fs, full, data))

    def _write_parts(self, path: str, data: bytes) -> None:
        brief = replace(self.settings.policy, budget_s=min(ABORT_BUDGET_S, self.settings.policy.budget_s))

        def call_s3(method: str, policy: RetryPolicy = self.settings.policy, **arguments: Any) -> Any:
            return self._call(path, lambda fs: fs.call_s3(method, **arguments), policy=policy)

        give_up = partial(call_s3, policy=brief)
        bucket, key, _ = self.filesystem.split_path(self._full(path))
        whole = Retrier(policy=self.settings.policy)
        whole.call(self._full(path), lambda: upload_parts(call_s3, give_up, bucket, key, data, part_bytes=PART_BYTES))

    def size(self, path: str) -> int | None:
        """Return the bytes of the file, None when there is no file."""
        found = self._info(path)
        return int(found["size"]) if found is not None and found["type"] == "file" else None

    def exists(self, path: str) -> bool:
        """Whether a file or a folder is there."""
        return self._info(path) is not None

    def _info(self, path: str) -> dict[str, Any] | None:
        full = self._full(path)
        return self._call(path, lambda fs: self._files.info(fs, full))

    def list_folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, sorted; empty when there is nothing."""
        return [name for name, kind in self._entries(path) if kind == "directory"]

    def list_files(self, path: str = "") -> list[str]:
        """Names of the files directly below `path`, sorted; empty when there is nothing."""
        return [name for name, kind in self._entries(path) if kind == "file"]

    def _entries(self, path: str) -> list[tuple[str, str]]:
        """Names and kinds; those that are no path below this folder, as others may write them, are left out."""
        full = self._full(path)
        found = self._call(path, lambda fs: self._files.entries(fs, full))
        return sorted((name, kind) for name, kind in found if is_name(name, self.scheme))

    def delete(self, path: str) -> None:
        """Remove the file or folder of exactly this name; nothing happens when it is not there."""
        full = self._full(path)
        if self.local_path is not None:
            self._call(path, lambda _: local_files.remove(self._base, full))
        else:
            self._call(path, lambda fs: self._files.remove(fs, full))

    def check_writable(self, what: str) -> None:
        """Raise UserError naming `what` unless a file can be written here (and leave nothing behind)."""
        probe = f".lexray-write-check-{os.getpid()}"
        created = self._first_missing_folder()
        try:
            self.write(probe, b"")
            self.delete(probe)
        except Exception as error:
            raise UnreachableError(
                f"{what}: cannot write to {self.url} ({one_line(error)}); choose another place"
            ) from error
        finally:
            if created is not None and os.path.isdir(created):
                _remove_empty_folders(self.local_path, created)

    def _first_missing_folder(self) -> str | None:
        path, missing = self.local_path, None
        while path and not os.path.exists(path):
            missing, path = path, os.path.dirname(path)
        return missing


@contextmanager
def reachable(what: str, url: str) -> Iterator[None]:
    """Turn a store that cannot be reached, or refuses us, into one line for the user."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:
        if not isinstance(error, OSError | ImportError | MissingBucketError) and not is_of_botocore(error):
            raise
        raise UnreachableError(f"{what}: cannot read {url} ({one_line(error)})") from error


def _remove_empty_folders(path: str | None, up_to: str) -> None:
    while path and len(path) >= len(up_to) and os.path.isdir(path) and not os.listdir(path):
        os.rmdir(path)
        path = os.path.dirname(path)
