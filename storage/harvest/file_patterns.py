"""Expand file patterns: paths and urls with `*`, `?`, `[...]`, `**` (any folders) and `{a,b}`.

A literal match takes precedence in each folder: `run [1]/*.txt` is the folder `run [1]` where it exists. Links are
followed.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator
from itertools import pairwise

from lexray.storage.harvest.file_trees import MAGIC, Below, Entry, Tree


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
