"""The header of a safetensors file: names, dtypes and shapes of its tensors, read before any of them is.

The header is 8 bytes of its own length and then JSON. Names must be distinct and the tensors must fill the rest of the
file exactly, so that shapes can be believed: no header promises more than the file holds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from lexray.storage.store import Store

MAX_HEADER_BYTES = 4 * 2**20
"""A dictionary has some dozen tensors; their header has some kilobytes."""
ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")

Shape = tuple[int, ...]


class TensorFileError(ValueError):
    """A file is no whole safetensors file, or holds other tensors than it should; the reason in one line."""


class StoredTensor(NamedTuple):
    """A tensor as the header describes it."""

    dtype: str
    """The format's name: F32, I64..."""
    shape: Shape


def read_header(store: Store, path: str) -> dict[str, StoredTensor]:
    """Return the tensors by name. Raises TensorFileError for a damaged file, FileNotFoundError for none."""
    size = store.size(path)
    if size is None:
        raise FileNotFoundError(path)
    start = store.read_range(path, 0, 8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > size - 8:
        raise TensorFileError(f"it has {size:,} bytes and its header is said to have {length:,}")
    if length > MAX_HEADER_BYTES:
        raise TensorFileError(f"its header has {length:,} bytes, {MAX_HEADER_BYTES:,} are read at most")
    entries = _parsed(store.read_range(path, 8, length))
    entries.pop("__metadata__", None)
    spans = {name: _span(name, entry) for name, entry in entries.items()}
    _check_filled(spans, size - 8 - length)
    return {name: stored for name, (stored, _, _) in spans.items()}


def _parsed(header: bytes) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            raise TensorFileError("a name stands twice in its header")
        return content

    def no_constant(name: str) -> NoReturn:
        raise TensorFileError(f"{name} in its header")

    try:
        content = json.loads(header, object_pairs_hook=distinct, parse_constant=no_constant)
    except TensorFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise TensorFileError("its header is not valid JSON") from error
    if not isinstance(content, dict):
        raise TensorFileError("its header holds no names")
    return content


def _span(name: str, entry: Any) -> tuple[StoredTensor, int, int]:
    """A tensor, and the first byte of it and behind it."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]} if dtype in ITEM_BYTES and all(
            map(_is_count, (*shape, begin, end))
        ):
            if end - begin == math.prod(shape) * ITEM_BYTES[dtype]:
                return StoredTensor(dtype, tuple(shape)), begin, end
    raise TensorFileError(f"its header describes no tensor at {name[:80]!r}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _check_filled(spans: Mapping[str, tuple[StoredTensor, int, int]], data_bytes: int) -> None:
    at = 0
    for _, begin, end in sorted(spans.values(), key=lambda span: span[1:]):
        if begin != at:
            raise TensorFileError(f"its header leaves a gap or an overlap at byte {begin:,} of the data")
        at = end
    if at != data_bytes:
        raise TensorFileError(f"it has {data_bytes:,} bytes of data, its header describes {at:,}")


def check_shapes(found: Mapping[str, Shape], wanted: Mapping[str, Shape], *, by: str) -> None:
    """Raise TensorFileError naming the first tensor that is missing, of another shape, or one too many.

    `by` says what the wanted shapes follow from.
    """
    for name, shape in wanted.items():
        if name not in found:
            raise TensorFileError(f"it has no {name}, which {by} needs")
        if found[name] != shape:
            raise TensorFileError(f"{name} has the shape {shown(found[name])}, {by} implies {shown(shape)}")
    for name in found:
        if name not in wanted:
            raise TensorFileError(f"it holds {name[:80]!r}, which {by} has no place for")


def shown(shape: Shape) -> str:
    """`30 x 7`; a scalar has none."""
    return " x ".join(f"{length}" for length in shape) or "of a single number"
