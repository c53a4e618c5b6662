"""Rendezvous of a process group at one address of rank 0's node.

torch's own store listens on every interface of the machine, so whoever reaches it can change what the ranks agree on.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any, NamedTuple


class Endpoint(NamedTuple):
    """An address and a port at which a process listens."""

    host: str
    port: int


_LISTENERS: dict[Endpoint, socket.socket] = {}
"""Ports that this process holds for stores it has yet to serve."""


def open_meeting(host: str) -> Endpoint:
    """Listen at this node's address for the ranks of one group; the port is held until rank 0 joins."""
    listener = socket.create_server((host, 0), family=_family(host), backlog=1024)
    endpoint = Endpoint(host, listener.getsockname()[1])
    _LISTENERS[endpoint] = listener
    return endpoint


def join_meeting(meeting: Endpoint, rank: int, size: int, timeout_s: float) -> Any:
    """Return the group's `TCPStore`; rank 0, in the process that opened the meeting, serves it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # compiled

    held: dict[str, Any] = {"master_listen_fd": _LISTENERS.pop(meeting).detach()} if rank == 0 else {}
    return TCPStore(*meeting, size, rank == 0, timedelta(seconds=timeout_s), wait_for_workers=False, **held)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
