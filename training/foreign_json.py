"""JSON files that anybody may have written: bounded in size and depth, and always an object."""

from __future__ import annotations

import json
from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.store import Store

MAX_BYTES = 16 * 2**20
MAX_DEPTH = 64


def read_object(store: Store, path: str, what: str) -> dict[str, Any]:
    """Return the JSON object in a file; NaN and infinities in it become None.

    Raises UserError in one line beginning with `what`, FileNotFoundError where there is no such file.
    """
    size = store.size(path)
    if size is None:
        raise FileNotFoundError(path)
    if size > MAX_BYTES:
        raise UserError(f"{what}: {path} has {size:,} bytes, {MAX_BYTES:,} are read at most")
    try:
        content = json.loads(store.read(path), parse_constant=lambda name: None, object_pairs_hook=distinct)
    except _RepeatedError as error:
        raise UserError(f"{what}: {path} has {error} twice") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what}: {path} is not valid JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no settings; expected an object of names and values")
    if _is_deeper(content, MAX_DEPTH):
        raise UserError(f"{what}: {path} is nested more than {MAX_DEPTH} deep")
    return content


class _RepeatedError(Exception):
    """A name stands twice in one object."""


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of names and values. Raises _RepeatedError, since JSON lets the last of two win without a word."""
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise _RepeatedError(repr(name[:60]))
        content[name] = value
    return content


def _is_deeper(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_is_deeper(part, depth - 1) for part in parts)
