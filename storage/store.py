"""A folder somewhere (`file://`, `s3://`, any fsspec scheme) and the few operations lexray needs of it.

Only a `Store`'s settings ever cross a process boundary: the filesystem behind it is built on first use in each process,
keyed by pid, because s3fs must not be used after a fork. Listing caches are off: a name is either read through a
manifest or listed afresh.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import fsspec

from storage.errors import UserError

_FILESYSTEMS: dict[tuple[int, str, StorageSettings], Any] = {}


@dataclass(frozen=True, kw_only=True)
class StorageSettings:
    """How to reach an object store. Credentials are not here: they come from the provider's own refreshable chain."""

    endpoint_url: str | None = None
    """Address of an S3-compatible server; None is AWS."""
    region: str | None = None
    profile: str | None = None
    """Name of a credentials profile."""
    anonymous: bool = False
    addressing_style: str = "auto"
    """`auto`, `path` or `virtual`."""

    def s3_options(self) -> dict[str, Any]:
        """Arguments of `s3fs.S3FileSystem`."""
        client = {k: v for k, v in (("endpoint_url", self.endpoint_url), ("region_name", self.region)) if v}
        options: dict[str, Any] = {"client_kwargs": client, "use_listings_cache": False}
        if self.addressing_style != "auto":
            options["config_kwargs"] = {"s3": {"addressing_style": self.addressing_style}}
        if self.profile:
            options["profile"] = self.profile
        if self.anonymous:
            options["anon"] = True
        return options


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
        elif scheme not in fsspec.available_protocols():
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
        key = (os.getpid(), self.scheme, self.settings)
        if key not in _FILESYSTEMS:
            options = self.settings.s3_options() if self.scheme == "s3" else {}
            _FILESYSTEMS[key] = fsspec.filesystem(self.scheme, **options)
        return _FILESYSTEMS[key]

    def _full(self, path: str) -> str:
        root = self.local_path if self.local_path is not None else self.url
        return f"{root}/{path}" if path else root

    def read(self, path: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        data: bytes = self.filesystem.cat_file(self._full(path))
        return data

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer at the end of the file."""
        if not length:
            return b""
        try:
            data: bytes = self.filesystem.cat_file(self._full(path), start=start, end=start + length)
        except OSError:
            size = self.size(path)  # object stores refuse a range that begins behind the end
            if size is None or size > start:
                raise
            return b""
        return data

    def write(self, path: str, data: bytes) -> None:
        """The file appears whole or not at all."""
        full = self._full(path)
        if self.local_path is None:
            self.filesystem.pipe_file(full, data)
            return
        os.makedirs(os.path.dirname(full), exist_ok=True)
        partial = f"{full}.{os.getpid()}.partial"
        try:
            with open(partial, "wb") as file:
                file.write(data)
            os.replace(partial, full)
        except BaseException:
            if os.path.exists(partial):
                os.remove(partial)
            raise

    def size(self, path: str) -> int | None:
        """Bytes of the file, None when it is not there."""
        try:
            return int(self.filesystem.info(self._full(path))["size"])
        except (FileNotFoundError, NotADirectoryError):
            return None

    def exists(self, path: str) -> bool:
        return bool(self.filesystem.exists(self._full(path)))

    def list_folders(self, path: str = "") -> list[str]:
        """Names of the folders directly below `path`, sorted; empty when there is nothing."""
        try:
            entries = self.filesystem.ls(self._full(path), detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(e["name"].rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def delete(self, path: str) -> None:
        """Remove a file or folder; nothing happens when it is not there."""
        if self.exists(path):
            self.filesystem.rm(self._full(path), recursive=True)

    def check_writable(self, what: str) -> None:
        """Raise UserError naming `what` unless a file can be written here (and leave nothing behind)."""
        probe = f".lexray-write-check-{os.getpid()}"
        created = self._first_missing_folder()
        try:
            self.write(probe, b"")
            self.delete(probe)
        except Exception as error:
            raise UserError(f"{what}: cannot write to {self.url} ({_reason(error)}); choose another place") from error
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
    except FileNotFoundError:
        raise
    except Exception as error:
        if not isinstance(error, OSError | ImportError) and not _is_of_botocore(error):
            raise
        raise UserError(f"{what}: cannot read {url} ({_reason(error)})") from error


def _is_of_botocore(error: Exception) -> bool:
    """No connection, no credentials, no such profile: none of them an OSError."""
    return any(kind.__module__ == "botocore.exceptions" for kind in type(error).__mro__)


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _remove_empty_folders(path: str | None, up_to: str) -> None:
    while path and len(path) >= len(up_to) and os.path.isdir(path) and not os.listdir(path):
        os.rmdir(path)
        path = os.path.dirname(path)
