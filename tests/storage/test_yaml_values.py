"""A file of settings is read as people mean it, or refused by file and line, at once, whatever its bytes are."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.storage.config_file import MAX_BYTES, FileModel, read_config_file, read_mapping
from lexray.storage.errors import UserError
from lexray.storage.yaml_values import MAX_VALUES, load_yaml


class Settings(FileModel):
    width: tuple[int, ...] = ()
    rows: int = 1
    lr: float = 1.0
    check: bool = False
    name: str = ""


MEANT: dict[str, Any] = {
    "032": 32,
    "08": 8,
    "-07": -7,
    "0x10": 16,
    "0o17": 15,
    "1_000": 1000,
    "1_000.5": 1000.5,
    "1e5": 1e5,
    "1e-4": 1e-4,
    "2.5E+3": 2500.0,
    ".5": 0.5,
    "1.": 1.0,
    "+3": 3,
    "true": True,
    "False": False,
    "~": None,
    "null": None,
    "": None,
    "-.inf": -math.inf,
    "9223372036854775807": 2**63 - 1,
    "on": "on",
    "off": "off",
    "yes": "yes",
    "no": "no",
    "y": "y",
    "n": "n",
    "1:40": "1:40",
    "12:30:45": "12:30:45",
    "2030-01-31": "2030-01-31",
    "2030-01-31 18:00:00": "2030-01-31 18:00:00",
    "0b11": "0b11",
    "1.2.3": "1.2.3",
    "1_": "1_",
    "1e": "1e",
    "=": "=",
    "'032'": "032",
    '"\\ud83d\\ude00"': "\U0001f600",
    "!!str 32": "32",
    "[032, 1e3, no]": [32, 1000.0, "no"],
}


@pytest.mark.parametrize("text", MEANT)
def test_plain_values_are_what_people_mean(text: str) -> None:
    found = load_yaml(f"a: {text}")["a"]
    assert found == MEANT[text]
    assert type(found) is type(MEANT[text])


def test_a_name_that_is_a_truth_value_elsewhere_is_a_name() -> None:
    assert load_yaml("on: 1\nn: 2\n'yes': 3") == {"on": 1, "n": 2, "yes": 3}


def test_anchors_and_merged_mappings_are_read() -> None:
    text = "all: &all {lr: 1, rows: 2}\none: {<<: *all, lr: 3}\ntwo: *all\nthree: {<<: [*all, {seed: 4}]}"
    everything = {"lr": 1, "rows": 2}
    assert load_yaml(text) == {
        "all": everything,
        "one": {"lr": 3, "rows": 2},
        "two": everything,
        "three": {"lr": 1, "rows": 2, "seed": 4},
    }


def test_fields_take_what_people_write(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(b"\xef\xbb\xbfwidth: [032, 1_024, 1e4]\nrows: 0x20\r\nlr: 1e-4\ncheck: on\nname: no\n")
    found = read_config_file(str(path), Settings)
    assert found == Settings(width=(32, 1024, 10_000), rows=32, lr=1e-4, check=True, name="no")


def bomb(levels: int, open_: str, close: str, leaf: str) -> str:
    lines = [f"a0: &a0 {leaf}"]
    lines += [f"a{n}: &a{n} {open_}{', '.join([f'*a{n - 1}'] * 9)}{close}" for n in range(1, levels)]
    return "\n".join(lines)


REFUSED: dict[str, tuple[str | bytes, str]] = {
    "sexagesimal rows": ("rows: 1:40", "rows: input should be a valid integer, unable to parse string as an integer, "),
    "twice": ("rows: 1\nlr: 2\nrows: 3", "line 3: 'rows' stands twice"),
    "twice inside": ("axes:\n  width: 1\n  width: 2", "line 3: 'width' stands twice"),
    "python": ("name: !!python/object/apply:os.system [ls]", "line 1: the tag 'tag:yaml.org,2002:python/object"),
    "a tag of a number": ("rows: !!int a", "line 1: the tag 'tag:yaml.org,2002:int' is not read"),
    "a tag of a date": ("name: !!timestamp x", "line 1: the tag"),
    "binary": ("name: !!binary x", "line 1: the tag"),
    "set": ("name: !!set {a}", "line 1: the tag"),
    "own tag": ("name: !own a", "line 1: the tag '!own' is not read"),
    "a list as a key": ("? [1]\n: 2", "line 1: a key is a list or a mapping"),
    "itself": ("name: &a [*a]", "line 1: an alias stands inside what it repeats"),
    "nobody's alias": ("name: *a", "found undefined alias"),
    "bomb of lists": (bomb(9, "[", "]", "[x, x, x]"), f"holds more than {MAX_VALUES:,} values"),
    "bomb of mappings": (bomb(9, "{<<: [", "]}", "{x: 1}"), f"holds more than {MAX_VALUES:,} values"),
    "many values": ("name: [" + "1," * MAX_VALUES + "]", f"beyond the first {MAX_VALUES:,} values"),
    "deep lists": ("name: " + "[" * 5000 + "]" * 5000, "line 1: lists and mappings are nested more than 32 deep"),
    "deep mappings": ("a: {" * 5000, "line 1: lists and mappings are nested more than 32 deep"),
    "deep items": ("\n" * 3 + "- " * 5000, "line 4: lists and mappings are nested more than 32 deep"),
    "digits": ("rows: " + "9" * 5000, "line 1: a number has more than 19 digits"),
    "half a character": ('name: "\\ud800"', "line 1: holds half a character"),
    "no character": ('name: "\\U00110000"', "not valid YAML"),
    "tab": ("axes:\n\twidth: 1", "line 2"),
    "NUL": ("name: a\0b", "special characters are not allowed"),
    "escape": ("name: a\x1b[2Jb", "special characters are not allowed"),
    "two documents": ("--- {rows: 1}\n--- {rows: 2}", "expected a single document"),
    "Latin-1": ("rows: 1\nname: caf\xe9".encode("latin-1"), "line 2: byte 0xe9 is not UTF-8; save it as that"),
    "UTF-16": ("rows: 1".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
    "a list": ("- rows", "holds no settings"),
    "nothing": ("", "holds no settings"),
    "a number as a key": ("1: 2", "keys should be strings"),
    "large": ("#" * (MAX_BYTES + 1), f"more than {MAX_BYTES:,} bytes"),
    "a long value": ("rows: " + "x" * 10_000, "(10,002 characters)"),
    "a long key": ("x" * 1000 + ": 1", "unknown key"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_in_one_short_line(name: str, tmp_path: Path) -> None:
    content, expected = REFUSED[name]
    path = tmp_path / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    began_s = time.monotonic()
    with pytest.raises(UserError) as caught:
        read_config_file(str(path), Settings)
    assert time.monotonic() - began_s < 5
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert expected in line
    assert "\n" not in line
    assert len(line) < 700


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/nowhere/a.yaml"])
def test_what_is_no_file_of_settings_is_refused_at_once(path: str) -> None:
    with pytest.raises(UserError, match=rf"^{path}: (no such file|cannot be read|more than)"):
        read_mapping(path)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc-: #", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.text("abcdefgh", min_size=1), plain, max_size=4))
def test_what_yaml_writers_write_is_read_back(content: dict[str, Any]) -> None:
    written = yaml.safe_dump(content)
    expected = yaml.safe_load(written)  # the writer rounds some floats and folds some line breaks
    assert load_yaml(written) == expected


@settings(deadline=None, max_examples=150)
@given(st.text(st.sampled_from("ab01:-_.e+x[]{}&*!%?|>'\"\\\n\t #,~=<@`"), max_size=40))
def test_any_text_is_a_value_or_a_yaml_error(text: str) -> None:
    try:
        load_yaml(text)
    except yaml.YAMLError as error:
        text = str(error)
    assert isinstance(text, str)
