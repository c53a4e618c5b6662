"""Divides the memory of a provisioned node: one formula for start commands, plans, placement and manifests.

    memory_gib (what a pool's description says) = heap 65 % + /dev/shm 35 %, of which Ray's object store is 30 %

The heap is Ray's `memory` resource, for processes. Windows of rows are in the object store; NCCL and torch put further
blocks into /dev/shm. The operating system's memory is not part of `memory_gib`.
infra/modules/aws/ray-ec2/config.tf computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
STORE_PERCENT, SHARED_PERCENT = 30, 35
"""Percent of a node's memory for Ray's object store, and for /dev/shm, which contains it."""
STORE_SHARE = STORE_PERCENT / 100
"""Share of the object store; equal to Ray's own default."""


@dataclass(frozen=True, kw_only=True)
class MemorySplit:
    """Bytes of a node's memory by use, each a whole number of MiB."""

    total: int
    heap: int
    """`--memory` of `ray start`."""
    store: int
    """`--object-store-memory` of `ray start`."""
    shared: int
    """Size of /dev/shm; `heap + shared == total`."""


def memory_split(memory_gib: float) -> MemorySplit:
    """Divide the memory of a node, given in GiB."""
    total, store, shared = (whole_mib(memory_gib, percent) for percent in (100, STORE_PERCENT, SHARED_PERCENT))
    return MemorySplit(total=total, heap=total - shared, store=store, shared=shared)


def store_beside(heap_bytes: float) -> int:
    """Return the bytes of the object store of a node that is known by its heap alone."""
    return int(heap_bytes * STORE_PERCENT / (100 - SHARED_PERCENT))


def whole_mib(gib: float, percent: int = 100) -> int:
    """Return so many percent of GiB as bytes, rounded down to whole MiB."""
    return int(gib * 2**10 * percent / 100) * MIB
