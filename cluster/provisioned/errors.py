"""What goes wrong with a cluster that answered before."""

from __future__ import annotations


class ClusterLostError(RuntimeError):
    """A cluster that was there does not answer any more. One line, that says how to go on. Exit code 1."""
