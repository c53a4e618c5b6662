"""The network interface on which gloo and NCCL meet.

gloo listens where the name of its machine leads, and that is the loopback on many a machine: workers of other nodes
then wait for each other in vain. NCCL takes the first interface that is up, and a node with several network cards has
some that other nodes do not reach.
"""

from __future__ import annotations

import os

import psutil
import ray.util

GLOO_INTERFACE, NCCL_INTERFACE = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"


def use_interface_of_the_node() -> None:
    """Let gloo and NCCL, which read the environment, listen at the address by which Ray knows this node.

    An interface that somebody chose stays.
    """
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(GLOO_INTERFACE, name)
        os.environ.setdefault(NCCL_INTERFACE, f"={name}")  # without the sign, every name that begins so


def interface_of(address: str) -> str | None:
    """The network interface that has this IP address; None where none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.split("%")[0] == address for found in addresses):
            return name
    return None
