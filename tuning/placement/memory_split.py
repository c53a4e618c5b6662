"""How the memory of a provisioned node is divided: one formula for start lines, plans, placement and manifests.

    memory_gib (what a pool's description says) = heap 65 % + /dev/shm 35 %, of which Ray's object store is 30 %

The heap is what Ray's `memory` resource counts: processes live there. Windows of rows lie in the object store; NCCL and
torch put blocks of their own beside it into /dev/shm. What the operating system needs is no part of `memory_gib`.
infra/modules/aws/ray-ec2/config.tf computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20
STORE_PERCENT, SHARED_PERCENT = 30, 35
"""Of a node's memory: Ray's object store, and /dev/shm, which holds it."""
STORE_SHARE = STORE_PERCENT / 100
"""Ray's own default where nobody says otherwise, too."""


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
