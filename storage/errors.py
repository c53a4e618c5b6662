"""The two kinds of trouble that lexray reports by name."""


class UserError(ValueError):
    """The user's input is wrong. One line: the field or file, both numbers, what to change. Exit code 2."""


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
