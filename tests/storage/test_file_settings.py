"""Frozen configurations as blocks of a file: one declaration, the same words wherever a value comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from lexray.storage.config_file import FileModel, checked_block, checked_config, checked_content, recorded
from lexray.storage.errors import UserError
from lexray.storage.file_settings import Because, Count, FileSettings, part_of


@dataclass(frozen=True, kw_only=True)
class Pace(FileSettings):
    """How often."""

    log: Count = 50
    """Steps between two lines."""
    rate: Annotated[float, Field(gt=0, le=10), Because("weights move by it")] | Literal["auto"] = "auto"
    stage: Literal["auto", 0, 1] = "auto"
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Training(Pace):
    """How long and how often."""

    rows: int | None = None
    """Rows to train on."""


class File(FileModel):
    """A file with both."""

    pace: Pace = Pace()
    many: list[Pace] = Field(default_factory=list)
    by_name: dict[str, Pace] = Field(default_factory=dict)
    maybe: Pace | Literal["auto"] | None = None
    training: Training = Training()


def refusal(content: dict[str, Any]) -> str:
    with pytest.raises(UserError) as error:
        checked_content("f.yaml", content, File)
    return str(error.value)


WRONG = [
    ({"lgo": 3}, ".lgo: unknown key; did you mean 'log'?"),
    ({"log": True}, ".log: true stands where a number belongs"),
    ({"log": 2**63}, f".log: {2**63} has more than 64 bits"),
    ({"log": 0}, ".log: 0 must be at least 1"),
    ({"log": "0"}, ".log: '0' must be at least 1"),
    ({"log": "many"}, ".log: input should be a valid integer, unable to parse string as an integer, got 'many'"),
    ({"rate": float("nan")}, ".rate: nan is not a finite number"),
    ({"rate": 11}, ".rate: 11 must be above 0 and at most 10: weights move by it"),
    ({"rate": 1e-20}, ".rate: 1e-20 is out of what float32 can compute with; use at least 1e-15"),
    ({"stage": 2}, ".stage: 2 is not one of auto, 0, 1"),
    ({"stage": True}, ".stage: True is not one of auto, 0, 1"),
]


@pytest.mark.parametrize(("values", "line"), WRONG, ids=str)
def test_a_wrong_value_is_named_with_file_and_path_wherever_the_block_stands(values, line):
    assert refusal({"pace": values}) == f"f.yaml: pace{line}"
    assert refusal({"many": [{}, values]}) == f"f.yaml: many.1{line}"
    assert refusal({"by_name": {"a": values}}) == f"f.yaml: by_name.a{line}"
    assert refusal({"maybe": values}) == f"f.yaml: maybe{line}"
    assert refusal({"training": values}) == f"f.yaml: training{line}"


@pytest.mark.parametrize(("values", "line"), [wrong for wrong in WRONG if "input" not in wrong[1]], ids=str)
def test_a_program_that_gives_a_wrong_value_reads_the_same_words(values, line):
    if "lgo" not in values and "0" not in values.values():
        with pytest.raises(UserError) as error:
            Pace(**values)
        assert str(error.value) == line.removeprefix(".")
    with pytest.raises(UserError) as error:
        checked_block(Pace(), values)
    assert str(error.value) == line.removeprefix(".")


def test_a_whole_block_of_another_type_is_refused():
    assert refusal({"pace": 5}).startswith("f.yaml: pace: input should be a dictionary")


def test_a_block_of_the_file_is_the_configuration():
    found = checked_content("f.yaml", {"pace": {"log": 3}, "training": {"rate": 2}, "maybe": "auto"}, File)
    assert found.pace == Pace(log=3)
    assert found.training == Training(rate=2.0)


def test_a_part_of_a_block_is_the_configuration_of_its_base():
    assert part_of(Pace, Training(log=3, rows=5), quiet=True) == Pace(log=3, quiet=True)


def test_fields_that_another_version_wrote_are_left_out_of_a_record_alone():
    assert recorded(Pace, {"log": 3, "later": 1}) == Pace(log=3)
    with pytest.raises(UserError, match="later: unknown key"):
        checked_config(Pace, {"log": 3, "later": 1})


def test_the_schema_has_bounds_and_docstrings_of_inherited_fields_too():
    training = File.model_json_schema()["$defs"]["Training"]["properties"]
    assert training["log"]["minimum"] == 1
    assert training["log"]["description"] == "Steps between two lines."
    assert training["rows"]["description"] == "Rows to train on."
