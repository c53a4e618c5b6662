"""Trees of folders and files, local or in object stores, through which file patterns are expanded."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.objects.files import info, list_entries
from lexray.storage.objects.retries import Retrier

MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """An entry of a folder."""

    kind: Literal["file", "folder", "broken", "other"]
    """Kind of entry: `broken` is a broken link, `other` a device, pipe or socket."""
    size: int = 0
    """Bytes of a file."""
    target: str = ""
    """Target of a broken link."""
    identity: tuple[int, int] | None = None
    """Device and inode of a local folder."""


class Tree(Protocol):
    """Folders and files, addressed by full names."""

    def split(self, pattern: str) -> tuple[str, list[str]]:
        """Split a pattern into its root and the parts below."""
        ...

    def join(self, folder: str, name: str) -> str: ...

    def find(self, folder: str, name: str, *, is_last: bool) -> Entry | None:
        """Return the entry of exactly this name in the folder; None when missing."""
        ...

    def names(self, folder: str, pattern: str) -> list[str]:
        """Return the names in the folder that may match `pattern`."""
        ...

    def folders(self, folder: str) -> list[str]:
        """Return the names of its subfolders that `**` descends into."""
        ...

    def below(self, folder: str) -> Below:
        """Return a walk through all folders below this one."""
        ...


class Below(Protocol):
    """A walk through folders."""

    def enter(self, path: str, entry: Entry) -> Below | None:
        """Continue the walk in a folder; None where that would be a cycle."""
        ...


def plain_path(pattern: str) -> str:
    """Normalise a `file://` url or path: expand `~`, drop `.` and repeated slashes."""
    path = os.path.expanduser(pattern.removeprefix("file://"))
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "."


@dataclass(frozen=True, kw_only=True)
class _Unlooped:
    """A walk that does not enter a folder that is already on its path."""

    report: CorpusReport
    above: frozenset[tuple[int, int]]

    def enter(self, path: str, entry: Entry) -> _Unlooped | None:
        if entry.identity in self.above:
            self.report.add("folder_loops", path)
            return None
        return _Unlooped(report=self.report, above=self.above | {entry.identity or (0, 0)})


@dataclass(frozen=True)
class LocalTree:
    """The local file system."""

    report: CorpusReport

    def split(self, pattern: str) -> tuple[str, list[str]]:
        return ("/", pattern[1:].split("/")) if pattern.startswith("/") else ("", pattern.split("/"))

    def join(self, folder: str, name: str) -> str:
        return os.path.join(folder, name)

    def find(self, folder: str, name: str, *, is_last: bool) -> Entry | None:
        path = os.path.join(folder, name)
        try:
            found = os.stat(path)
        except PermissionError:
            raise
        except OSError:  # the target of a link may be missing or the link itself
            return Entry(kind="broken", target=os.readlink(path)) if os.path.islink(path) else None
        if stat.S_ISDIR(found.st_mode):
            return Entry(kind="folder", identity=(found.st_dev, found.st_ino))
        return Entry(kind="file" if stat.S_ISREG(found.st_mode) else "other", size=found.st_size)

    def names(self, folder: str, pattern: str) -> list[str]:
        names = [entry.name for entry in self._scan(folder)]
        return names if pattern.startswith(".") else [name for name in names if not name.startswith(".")]

    def folders(self, folder: str) -> list[str]:
        return [entry.name for entry in self._scan(folder) if not entry.name.startswith(".") and _is_folder(entry)]

    def _scan(self, folder: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder or ".") as entries:
                return list(entries)
        except PermissionError:
            self.report.add("unreadable_folders", folder)
            return []
        except OSError:
            return []

    def below(self, folder: str) -> _Unlooped:
        place, above = os.path.realpath(folder or "."), set()
        while True:
            found = os.stat(place)
            above.add((found.st_dev, found.st_ino))
            if place == (place := os.path.dirname(place)):
                return _Unlooped(report=self.report, above=frozenset(above))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@dataclass(frozen=True)
class UrlTree:
    """Objects of a store, listed once."""

    filesystem: Any
    retrier: Retrier
    _known: dict[str, dict[str, Entry]] = field(default_factory=dict)

    def split(self, pattern: str) -> tuple[str, list[str]]:
        scheme, _, rest = pattern.partition("://")
        root, *parts = rest.split("/")
        return f"{scheme}://{root}", parts or [""]

    def join(self, folder: str, name: str) -> str:
        return f"{folder}/{name}"

    def find(self, folder: str, name: str, *, is_last: bool) -> Entry | None:
        if folder in self._known or MAGIC.search(name) or "{" in name:
            return self._list(folder).get(name)
        if not is_last:
            return Entry(kind="folder")  # its content decides
        path = self.join(folder, name)
        found = self.retrier.call(path, lambda: info(self.filesystem, path))
        return None if found is None else _entry(found)

    def names(self, folder: str, pattern: str) -> list[str]:
        return list(self._list(folder))

    def folders(self, folder: str) -> list[str]:
        return [name for name, entry in self._list(folder).items() if entry.kind == "folder"]

    def below(self, folder: str) -> UrlTree:
        """List everything below the folder at once."""
        root = self.filesystem._strip_protocol(folder).rstrip("/") + "/"
        self._known[folder] = {}
        everything = self.retrier.call(folder, lambda: self.filesystem.find(folder, detail=True))
        for name, found in everything.items():
            path = self.filesystem._strip_protocol(name)
            if path.startswith(root) and not path.endswith("/"):
                self._add(folder, path.removeprefix(root).split("/"), _entry(found))
        return self

    def enter(self, path: str, entry: Entry) -> UrlTree:
        return self

    def _add(self, folder: str, parts: list[str], entry: Entry) -> None:
        for part in parts[:-1]:
            self._known[folder].setdefault(part, Entry(kind="folder"))
            folder = self.join(folder, part)
            self._known.setdefault(folder, {})
        self._known[folder][parts[-1]] = entry

    def _list(self, folder: str) -> dict[str, Entry]:
        if folder not in self._known:
            own = self.filesystem._strip_protocol(folder).rstrip("/")
            entries = self.retrier.call(folder, lambda: list_entries(self.filesystem, folder))
            named = {self.filesystem._strip_protocol(entry["name"]).rstrip("/"): entry for entry in entries}
            self._known[folder] = {
                path.rsplit("/", 1)[-1]: _entry(entry) for path, entry in named.items() if path != own
            }
        return self._known[folder]


def _entry(found: dict[str, Any]) -> Entry:
    is_folder = found.get("type") == "directory"
    return Entry(kind="folder" if is_folder else "file", size=int(found.get("size") or 0))
