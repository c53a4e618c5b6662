"""What goes wrong with a cluster."""

from __future__ import annotations


class ClusterLostError(RuntimeError):
    """A cluster that was there does not answer any more. One line, that says how to go on. Exit code 1."""


class RefusedError(RuntimeError):
    """A cluster did not do what was asked. One line of what it says. Exit code 1."""

    def __init__(self, line: str, *, is_busy: bool = False) -> None:
        """`is_busy`: the fault is the cluster's, and may be over when it is asked again."""
        super().__init__(line)
        self.is_busy = is_busy


class NotFoundError(RuntimeError):
    """A cluster knows no such thing."""
