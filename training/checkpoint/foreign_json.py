"""JSON objects of settings that anybody may have written: bounded in size and depth, each name once."""

from __future__ import annotations

import json
from typing import Any

from lexray.storage.documents import plain, read_bounded
from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.store import Store

MAX_BYTES = 16 * 2**20


def read_object(store: Store, path: str, what: str) -> dict[str, Any]:
    """Return the JSON object in a file; NaN and infinities in it become None.

    Raises UserError in one line beginning with `what`, FileNotFoundError where there is no such file.
    """
    try:
        raw = read_bounded(store, path, MAX_BYTES)
    except CorruptDataError as error:
        raise UserError(f"{what}: {error}") from error
    try:
        content = json.loads(raw, parse_constant=lambda name: None, object_pairs_hook=distinct)
    except _RepeatedError as error:
        raise UserError(f"{what}: {path} has {error} twice") from error
    except (RecursionError, ValueError) as error:
        raise UserError(f"{what}: {path} is not valid JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds no settings; expected an object of names and values")
    try:
        return dict(plain(content))
    except ValueError as error:
        raise UserError(f"{what}: {path}: {error}") from error


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
