"""A document of somebody else's is of the type that was promised, or refused in one line; nothing of it is believed."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from lexray.storage.documents import (
    MAX_DEPTH,
    Count,
    Finite,
    Plain,
    parse_document,
    parse_lines,
    read_bounded,
    read_document,
    read_lines,
)
from lexray.storage.errors import CorruptDataError
from lexray.storage.store import Store


@dataclass(frozen=True, kw_only=True)
class Record:
    steps: Count
    loss: Finite | None = None
    names: list[str] = field(default_factory=list)
    about: Plain = None


RECORD = TypeAdapter(Record)


def refusal(content: bytes | str) -> str:
    with pytest.raises(CorruptDataError) as caught:
        parse_document(content, RECORD, "record.json", remedy="remove it")
    line = str(caught.value)
    assert line.startswith("record.json: ")
    assert line.endswith("; remove it")
    assert "\n" not in line
    assert len(line) < 400
    return line


def test_a_document_is_read_as_what_it_is() -> None:
    content = b'{"steps": 3, "loss": 0.5, "names": ["a"], "about": {"x": [1, NaN, -9223372036854775808]}}'
    found = parse_document(content, RECORD, "record.json")
    assert (found.steps, found.loss, found.names) == (3, 0.5, ["a"])
    assert found.about["x"][2] == -(2**63)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{\x00}\x00", "is not valid JSON"),
        (b'\xef\xbb\xbf{"steps": 1}', "is not valid JSON"),
        (b'{"steps": 1} {"steps": 2}', "is not valid JSON"),
        (b'{"steps": 1, "names": ["\\ud800"]}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"steps":' * 100_000, "is not valid JSON"),
        (b'{"steps": ' + b"9" * 5_000 + b"}", "is not valid JSON"),
        (b"null", "should be"),
        (b"[]", "should be"),
        (b"{}", "steps: Field required"),
        (b'{"steps": "3"}', "steps: Input should be a valid integer, got '3'"),
        (b'{"steps": 3.0}', "steps: Input should be a valid integer, got 3.0"),
        (b'{"steps": true}', "steps: Input should be a valid integer, got True"),
        (b'{"steps": null}', "steps: Input should be a valid integer, got None"),
        (b'{"steps": NaN}', "steps: Input should be a valid integer, got nan"),
        (b'{"steps": -1}', "steps: Input should be greater than or equal to 0, got -1"),
        (b'{"steps": 9223372036854775808}', "steps: Input should be less than 9223372036854775808"),
        (b'{"steps": 1, "loss": 1e999}', "loss: Input should be a finite number, got inf"),
        (b'{"steps": 1, "loss": "low"}', "loss: Input should be a valid number, got 'low'"),
        (b'{"steps": 1, "names": "ab"}', "names: Input should be a valid array"),
        (b'{"steps": 1, "names": ["a", 2]}', "names.1: Input should be a valid string, got 2"),
        (b'{"steps": 1, "about": [18446744073709551616]}', "about: a whole number has more than 64 bits"),
        (b'{"steps": "' + b"x" * 100_000 + b'"}', "(100,002 characters)"),
    ],
)
def test_what_is_not_that_is_refused_by_its_field(content: bytes, expected: str) -> None:
    assert expected in refusal(content)


def test_nesting_is_bounded_where_nothing_is_known_of_a_value() -> None:
    def nested(depth: int) -> str:
        return '{"steps": 1, "about": ' + "[" * depth + "]" * depth + "}"

    assert parse_document(nested(MAX_DEPTH), RECORD, "record.json").steps == 1
    assert f"nested more than {MAX_DEPTH} deep" in refusal(nested(MAX_DEPTH + 2))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=200)
@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_record_or_one_line(content: bytes) -> None:
    try:
        said = repr(parse_document(content, RECORD, "record.json"))
    except CorruptDataError as error:
        said = str(error)
    assert said.startswith(("Record(", "record.json: "))
    assert "\n" not in said


def test_lines_are_named_by_their_number() -> None:
    kind = TypeAdapter(dict[str, Any])
    assert parse_lines(b'{"a": 1}\n\n{"b": 2}\n', kind, "log") == [{"a": 1}, {"b": 2}]
    with pytest.raises(CorruptDataError, match=r"^log: line 3: is not valid JSON"):
        parse_lines(b'{"a": 1}\n\n{"b": \n', kind, "log")


@pytest.mark.parametrize("scheme", ["", "memory://documents"])
def test_no_more_is_read_than_a_document_may_have(scheme: str, tmp_path: Path) -> None:
    store = Store.at(f"{scheme}{tmp_path}")
    store.write("a.json", b'{"steps": 1}')
    assert read_document(store, "a.json", RECORD).steps == 1
    assert read_lines(store, "a.json", RECORD) == [Record(steps=1)]
    assert read_bounded(store, "a.json", 12) == b'{"steps": 1}'
    with pytest.raises(CorruptDataError, match=r"a\.json: 12 bytes; at most 11 are read"):
        read_bounded(store, "a.json", 11)
    with pytest.raises(FileNotFoundError):
        read_document(store, "b.json", RECORD)


@pytest.mark.parametrize("kind", ["folder", "device", "pipe", "loop"])
def test_what_is_no_file_is_refused_at_once(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "a.json"
    match kind:
        case "folder":
            place.mkdir()
        case "device":
            place.symlink_to("/dev/zero")
        case "pipe":
            os.mkfifo(place)
        case "loop":
            place.symlink_to(place)
    began_s = time.monotonic()
    with pytest.raises(CorruptDataError, match=r"^a\.json: is (no regular file|a link that leads to itself)$"):
        read_document(Store.at(str(tmp_path)), "a.json", RECORD)
    assert time.monotonic() - began_s < 2
