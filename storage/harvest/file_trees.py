"""Trees of folders and files, local or in object stores, through which file patterns are expanded.

Patterns are paths and urls with `*`, `?`, `[...]`, `**` (any folders) and `{a,b}`. A literal match takes precedence in
each folder: `run [1]/*.txt` is the folder `run [1]` where it exists. Links are followed.
"""

from __future__ import annotations

import fnmatch
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

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
        """Continue the walk in a folder; None where that would be a cycle."""
        if entry.identity in self.above:
            self.report.add("folder_loops", path)
            return None
        return _Unlooped(report=self.report, above=self.above | {entry.identity or (0, 0)})


@dataclass(frozen=True)
class LocalTree:
    """The local file system. Folders and files are addressed by full names."""

    report: CorpusReport

    def split(self, pattern: str) -> tuple[str, list[str]]:
        """Split a pattern into its root and the parts below."""
        return ("/", pattern[1:].split("/")) if pattern.startswith("/") else ("", pattern.split("/"))

    def join(self, folder: str, name: str) -> str:
        return os.path.join(folder, name)

    def find(self, folder: str, name: str, *, is_last: bool) -> Entry | None:
        """Return the entry of exactly this name in the folder; None when missing."""
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
        """Return the names in the folder that may match `pattern`."""
        names = [entry.name for entry in self._scan(folder)]
        return names if pattern.startswith(".") else [name for name in names if not name.startswith(".")]

    def folders(self, folder: str) -> list[str]:
        """Return the names of its subfolders that `**` descends into."""
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
        """Return a walk through all folders below this one."""
        place, above = os.path.realpath(folder or "."), set()
        while True:
            found = os.stat(place)
            above.add((found.st_dev, found.st_ino))
            if place == (place := os.path.dirname(place)):
                return _Unlooped(report=self.report, above=frozenset(above))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with suppress(OSError):  # a link to itself
        return entry.is_dir()
    return False


@dataclass(frozen=True)
class UrlTree:
    """Objects of a store, listed once; it is its own walk through the folders below one, where no cycle can be."""

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


Tree = LocalTree | UrlTree
Below = _Unlooped | UrlTree


def expand(tree: Tree, pattern: str) -> Iterator[tuple[str, Entry]]:
    """Yield all matches, unordered and possibly repeated."""
    folder, parts = tree.split(pattern)
    parts = [part for number, part in enumerate(parts) if (part, parts[number - 1 : number]) != ("**", ["**"])]
    yield from _expand(tree, folder, parts)


def _expand(tree: Tree, folder: str, parts: list[str]) -> Iterator[tuple[str, Entry]]:
    head, *rest = parts
    if head == "**":
        yield from _expand_any_depth(tree, folder, rest or ["*"], tree.below(folder))
        return
    literal = tree.find(folder, head, is_last=not rest)
    if literal is None and (alternatives := split_braces("/".join(parts))):
        for alternative in alternatives:
            yield from _expand(tree, folder, alternative.split("/"))
        return
    names = [head] if literal is not None else _matches(tree, folder, head)
    for name in names:
        entry = literal or tree.find(folder, name, is_last=not rest)
        path = tree.join(folder, name)
        if entry is not None and not rest:
            yield path, entry
        elif entry is not None and entry.kind == "folder":
            yield from _expand(tree, path, rest)


def _matches(tree: Tree, folder: str, pattern: str) -> list[str]:
    if not MAGIC.search(pattern):
        return []
    return [name for name in tree.names(folder, pattern) if fnmatch.fnmatchcase(name, pattern)]


def _expand_any_depth(tree: Tree, folder: str, rest: list[str], below: Below) -> Iterator[tuple[str, Entry]]:
    yield from _expand(tree, folder, rest)
    for name in tree.folders(folder):
        entry, path = tree.find(folder, name, is_last=True), tree.join(folder, name)
        deeper = None if entry is None else below.enter(path, entry)
        if deeper is not None:
            yield from _expand_any_depth(tree, path, rest, deeper)


def split_braces(pattern: str) -> list[str]:
    """Return the alternatives of the first `{a,b}` in `pattern`; empty where it has no braces."""
    start = -1
    while (start := pattern.find("{", start + 1)) >= 0:
        depth, commas = 0, [start]
        for place in range(start, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[place], 0)
            if pattern[place] == "," and depth == 1:
                commas.append(place)
            if depth == 0:
                commas.append(place)
                break
        if depth == 0 and len(commas) > 2:
            choices = [pattern[a + 1 : b] for a, b in pairwise(commas)]
            return [pattern[:start] + choice + pattern[commas[-1] + 1 :] for choice in choices]
    return []


def count_alternatives(pattern: str) -> int:
    """Return an upper bound on the number of patterns into which the braces of `pattern` expand."""
    return math.prod(1 + choices.count(",") for choices in re.findall(r"\{([^{}]*)", pattern))
