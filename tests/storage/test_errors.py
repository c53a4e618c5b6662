"""Messages that quote what others wrote stay readable."""

import pickle

import pytest

from lexray.storage.errors import CorruptDataError, MissingBucketError, UserError, last_line, named_line, one_line


@pytest.mark.parametrize("kind", [UserError, MissingBucketError, CorruptDataError])
def test_a_message_loses_its_middle_when_it_is_too_long(kind: type[Exception]) -> None:
    error = kind(f"trials/a/trial.json: trial: {'x' * 100_000}, but its folder is called a; rename it")

    assert len(str(error)) < 2000
    assert str(error).startswith("trials/a/trial.json: trial: xxx")
    assert "x ...(98,4" in str(error)
    assert str(error).endswith("; rename it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_message_of_usual_length_is_kept() -> None:
    assert str(UserError("rows: 0, must be at least 1")) == "rows: 0, must be at least 1"


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("first\nsecond"), "first", "ValueError: first"),
        (ValueError("\n  first  \n"), "first", "ValueError: first"),
        (ValueError(), "ValueError", "ValueError"),
        (FileNotFoundError(2, "No such file or directory", "x"), "No such file or directory", None),
    ],
)
def test_an_error_in_one_line(error: Exception, line: str, named: str | None) -> None:
    assert one_line(error) == line
    assert named_line(error) == (named or f"{type(error).__name__}: {line}")


def test_the_last_line_that_says_something() -> None:
    assert [last_line(text) for text in ("a\nb\n\n  \n", "", " \n")] == ["b", "", ""]
