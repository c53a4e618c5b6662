"""Read untrusted JSON documents: of bounded size and one type, refused in one line.

Datasets, dictionaries, sweep folders and servers come from others, so their documents are validated here before use. At
most `max_bytes` of a file are read, and only of a regular one. Pydantic parses and validates in one pass: strictly (no
text and no 3.0 for integers), with bounded nesting, without lone surrogates. Numbers have types: `Count` for whole
numbers, `Finite` for others, `Plain` for arbitrary JSON values.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from lexray.storage.errors import CorruptDataError
from lexray.storage.objects.s3_objects import PART_BYTES
from lexray.storage.store import Store

MAX_BYTES = 16 * 2**20
"""Default maximum bytes of a document."""
MAX_DEPTH = 64
"""Maximum nesting of lists and objects in a `Plain` value."""
_SHOWN = 60
"""Maximum characters of a foreign value in a message."""

MAX_MESSAGE = 600
"""Maximum characters of a library's message, which may repeat a foreign value."""

T = TypeVar("T")
Checked = TypeVar("Checked")


def plain(value: Any) -> Any:
    """Return the JSON value itself. Raises ValueError for nesting beyond `MAX_DEPTH` and numbers beyond 64 bits."""
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
"""Configuration of a TypedDict that validates some of an object's fields and keeps the others."""


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError("is no number")
    return plain(value)


Number = Annotated[Any, AfterValidator(_number)]
"""A measured number; None and NaN where it is undefined."""


def as_described(kind: Any) -> Callable[[Checked], Checked]:
    """Return a function that checks that a value is of `kind` and returns it. It raises ValueError in one line."""
    adapter = TypeAdapter(kind)

    def check(value: Checked) -> Checked:
        try:
            adapter.validate_python(plain(value))
        except ValidationError as error:
            raise ValueError(first_mistake(error)) from None
        return value

    return check


def parse_document(content: bytes | str, kind: TypeAdapter[T], file: str, *, remedy: str = "") -> T:
    """Parse a document as `kind`. Raises CorruptDataError: `FILE: field: what is wrong`, followed by `remedy`."""
    try:
        return kind.validate_json(content, strict=True)
    except ValidationError as error:
        raise CorruptDataError(f"{file}: {first_mistake(error)}{'; ' if remedy else ''}{remedy}") from None


def read_document(
    store: Store, path: str, kind: TypeAdapter[T], *, file: str = "", remedy: str = "", max_bytes: int = MAX_BYTES
) -> T:
    """Read the document at `path`, named `file` in messages. Raises FileNotFoundError, CorruptDataError."""
    return parse_document(read_bounded(store, path, max_bytes, file), kind, file or path, remedy=remedy)


def read_lines(
    store: Store, path: str, kind: TypeAdapter[T], *, file: str = "", remedy: str = "", max_bytes: int = MAX_BYTES
) -> list[T]:
    """Read a file with a document in each line, like `read_document`; empty lines are skipped."""
    content = read_bounded(store, path, max_bytes, file)
    return parse_lines(content, kind, file or path, remedy=remedy)


def parse_lines(content: bytes, kind: TypeAdapter[T], file: str, *, remedy: str = "") -> list[T]:
    """Parse a document for each non-empty line. Raises CorruptDataError naming the line."""
    lines = enumerate(content.split(b"\n"), start=1)
    return [
        parse_document(line, kind, f"{file}: line {number}", remedy=remedy) for number, line in lines if line.strip()
    ]


def read_bounded(store: Store, path: str, max_bytes: int, file: str = "") -> bytes:
    """Read a file of at most `max_bytes`. Raises FileNotFoundError; CorruptDataError when larger or not regular."""
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
    """Return the bytes of a local file; None in an object store. Refuses devices and pipes, which may never end."""
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
    """Return `field.path: what is wrong, got VALUE` for the first mistake, in one line of bounded length."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = shortened(first["msg"].removeprefix("Value error, "), MAX_MESSAGE)
    if first["type"] == "json_invalid":
        return f"is not valid JSON ({message.removeprefix('Invalid JSON: ')})"
    where = shortened(" ".join(".".join(str(part) for part in first["loc"]).split()))
    given = first.get("input")
    known = isinstance(given, str | int | float | bool | None) and first["type"] not in ("missing", "extra_forbidden")
    shown = f", got {shortened(repr(given))}" if known else ""
    return f"{where}: {message}{shown}" if where else f"{message}{shown}"


def shortened(text: str, characters: int = _SHOWN) -> str:
    """Shorten a foreign text for a message to `characters`."""
    return text if len(text) <= characters else f"{text[:characters]}... ({len(text):,} characters)"
