"""The two kinds of trouble that lexray reports by name.

Both may quote what others wrote (a name in a document, an answer of a server), so that neither lets a message grow
beyond what is read: the middle of a longer one is left out, since the end says what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_MAX, _FIRST, _LAST = 2000, 1200, 400


def _bounded(message: str) -> str:
    if len(message) <= _MAX:
        return message
    left_out = len(message) - _FIRST - _LAST
    return f"{message[:_FIRST]} ...({left_out:,} characters more)... {message[-_LAST:]}"


class UserError(ValueError):
    """The user's input is wrong. One line: the field or file, both numbers, what to change. Exit code 2."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_bounded(str(message)))


class UnreachableError(UserError):
    """From here a store cannot be read or written; from another machine it may."""


class MissingBucketError(UnreachableError):
    """The bucket of an object store does not exist, or not for these credentials."""

    @property
    def strerror(self) -> str:
        """The reason without the advice, for a line that gives its own."""
        return str(self).split(";")[0]


class CorruptDataError(RuntimeError):
    """Stored bytes are not what the manifest promises. Names the shard or file."""

    def __init__(self, message: object = "") -> None:
        super().__init__(_bounded(str(message)))


@contextmanager
def as_user_error(message: Callable[[Any], str], *kinds: type[Exception]) -> Iterator[None]:
    """Turn errors of `kinds` (of any kind where none is given) into a UserError of what `message` returns for them.

    A UserError keeps its own message.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not isinstance(error, kinds or Exception):
            raise
        raise UserError(message(error)) from error


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says; the name of its class where it says nothing."""
    text = str(getattr(error, "strerror", None) or error).strip()
    return text.splitlines()[0].strip() if text else type(error).__name__


def named_line(error: BaseException) -> str:
    """Return `CLASS: first line`, for errors that make no sense without the name of their class."""
    name, line = type(error).__name__, one_line(error)
    return name if line == name else f"{name}: {line}"


def last_line(text: str) -> str:
    """Return the last line that says something, where programs put the cause; empty where none does."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
