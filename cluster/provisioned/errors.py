"""Errors of communication with a cluster."""

from __future__ import annotations


class ClusterLostError(RuntimeError):
    """A cluster stopped answering. One line that says how to resume. Exit code 1."""


class RefusedError(RuntimeError):
    """A cluster refused a request. One line with its message. Exit code 1."""

    def __init__(self, line: str, *, is_busy: bool = False) -> None:
        """`is_busy`: the fault is the cluster's and may be transient."""
        super().__init__(line)
        self.is_busy = is_busy


class NotFoundError(RuntimeError):
    """The requested object does not exist on the cluster."""
