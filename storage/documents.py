"""Read JSON documents that somebody else may have written: of bounded size, of one type, refused in one line.

Datasets, dictionaries, sweep folders and servers are handed around, so nothing that a document says is believed before
it is read here. No more than `max_bytes` of a file are read, and only of a regular one. Pydantic parses and checks the
rest in one go: strictly (no text and no 3.0 where a whole number belongs), with a bounded nesting, without lone
surrogates. Types say what numbers may be: `Count` for a whole number, `Finite` for any other, `Plain` for values of
which nothing is known but that they are JSON.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from lexray.storage.errors import CorruptDataError
from lexray.storage.objects.multipart import PART_BYTES
from lexray.storage.store import Store

MAX_BYTES = 16 * 2**20
"""Bytes of a document at most, unless its reader says otherwise."""
MAX_DEPTH = 64
"""Lists and objects of a `Plain` value that may lie inside each other."""
_SHOWN = 60
"""Characters of a foreign value that a message repeats."""

_MAX_MESSAGE = 600
"""Characters of a library's message, which may repeat a foreign value whole."""

T = TypeVar("T")
Checked = TypeVar("Checked")


def plain(value: Any) -> Any:
    """The JSON value itself. Raises ValueError for nesting beyond `MAX_DEPTH`, and for numbers beyond 64 bits."""
    level, depth = [value], 0
    while level:
        for one in level:
            if isinstance(one, int) and not -(2**63) <= one < 2**64:
                raise ValueError("a whole number has more than 64 bits")
        nested = [one for one in level if isinstance(one, dict | list)]
        level = [inner for one in nested for inner in (one.values() if isinstance(one, dict) else one)]
        depth += 1
        if depth > MAX_DEPTH and nested:
            raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")
    return value


Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A whole number from 0 that fits 64 bits."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Plain = Annotated[Any, AfterValidator(plain)]
"""Any JSON value, of bounded depth, whose whole numbers fit 64 bits; other numbers may be NaN or infinite."""
OPEN = ConfigDict(extra="allow", strict=True)
"""Of a TypedDict that describes some of an object's fields and leaves the others alone."""


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError("is no number")
    return plain(value)


Number = Annotated[Any, AfterValidator(_number)]
"""A measured number; None and NaN for one that means nothing."""


def as_described(kind: Any) -> Callable[[Checked], Checked]:
    """A check that a value is of `kind`, which gives the value back as it is. Raises ValueError in one line."""
    adapter = TypeAdapter(kind)

    def check(value: Checked) -> Checked:
        try:
            adapter.validate_python(plain(value))
        except ValidationError as error:
            raise ValueError(first_mistake(error)) from None
        return value

    return check


def parse_document(content: bytes | str, kind: TypeAdapter[T], file: str, *, remedy: str = "") -> T:
    """The document as `kind`. Raises CorruptDataError: `FILE: field: what is wrong`, with `remedy` behind it."""
    try:
        return kind.validate_json(content, strict=True)
    except ValidationError as error:
        raise CorruptDataError(f"{file}: {first_mistake(error)}{'; ' if remedy else ''}{remedy}") from None


def read_document(
    store: Store, path: str, kind: TypeAdapter[T], *, file: str = "", remedy: str = "", max_bytes: int = MAX_BYTES
) -> T:
    """The document at `path` of the store, called `file` in messages. Raises FileNotFoundError, CorruptDataError."""
    return parse_document(read_bounded(store, path, max_bytes, file), kind, file or path, remedy=remedy)


def read_lines(
    store: Store, path: str, kind: TypeAdapter[T], *, file: str = "", remedy: str = "", max_bytes: int = MAX_BYTES
) -> list[T]:
    """The same of a file with a document in each line; empty lines are none."""
    content = read_bounded(store, path, max_bytes, file)
    return parse_lines(content, kind, file or path, remedy=remedy)


def parse_lines(content: bytes, kind: TypeAdapter[T], file: str, *, remedy: str = "") -> list[T]:
    """A document for each line that is not empty. Raises CorruptDataError naming the line."""
    lines = enumerate(content.split(b"\n"), start=1)
    return [
        parse_document(line, kind, f"{file}: line {number}", remedy=remedy) for number, line in lines if line.strip()
    ]


def read_bounded(store: Store, path: str, max_bytes: int, file: str = "") -> bytes:
    """The file, of at most `max_bytes`. Raises FileNotFoundError, and CorruptDataError for one that is no such file."""
    size = _local_size(store, path, file or path)
    if size is None:
        first = store.read_range(path, 0, min(max_bytes + 1, PART_BYTES))
        size = len(first) if len(first) < PART_BYTES else store.size(path) or 0
        if size <= len(first) <= max_bytes:
            return first
    if size > max_bytes:
        raise CorruptDataError(f"{file or path}: {size:,} bytes; at most {max_bytes:,} are read")
    return store.read(path)


def _local_size(store: Store, path: str, file: str) -> int | None:
    """Bytes of a file on this machine; None in an object store. Devices and pipes have none, and may never end."""
    if store.local_path is None:
        return None
    full = f"{store.local_path}/{path}"
    try:
        found = os.stat(full)
    except ValueError as error:  # a path with a NUL byte
        raise FileNotFoundError(errno.ENOENT, "no such file", full) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise FileNotFoundError(errno.ENOENT, "no such file", full) from error
        if error.errno == errno.ELOOP:
            raise CorruptDataError(f"{file}: is a link that leads to itself") from error
        raise
    if not stat.S_ISREG(found.st_mode):
        raise CorruptDataError(f"{file}: is no regular file")
    return found.st_size


def first_mistake(error: ValidationError) -> str:
    """`field.path: what is wrong, got VALUE` of the first mistake, in one line of bounded length."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = shortened(first["msg"].removeprefix("Value error, "), _MAX_MESSAGE)
    if first["type"] == "json_invalid":
        return f"is not valid JSON ({message.removeprefix('Invalid JSON: ')})"
    where = shortened(" ".join(".".join(str(part) for part in first["loc"]).split()))
    given = first.get("input")
    known = isinstance(given, str | int | float | bool | None) and first["type"] not in ("missing", "extra_forbidden")
    shown = f", got {shortened(repr(given))}" if known else ""
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def shortened(text: str, characters: int = _SHOWN) -> str:
    """A foreign text in a message: at most so many characters."""
    return text if len(text) <= characters else f"{text[:characters]}... ({len(text):,} characters)"
