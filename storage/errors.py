"""The two kinds of trouble that lexray reports by name.

Both may quote what others wrote (a name in a document, an answer of a server), so that neither lets a message grow
beyond what is read: the middle of a longer one is left out, since the end says what to do.
"""

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
