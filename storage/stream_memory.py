"""Memory of streams on a node, computed before the first step and refused where it exceeds the node's.

Windows are in Ray's object store, which spills to disk beyond a share of its size: then every batch would be read from
disk. So the windows held at once must stay below that share.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest
from lexray.storage.units import size

WINDOWS_SHARE = 0.7
"""Maximum share of Ray's object store for windows: it spills beyond 0.8 by default, and frees a second late."""
KEPT_SHARE = 0.3
"""Maximum share of the object store for the windows that a server keeps."""
MEMORY_SHARE = 0.9
"""Maximum share of a machine's memory for streams; training also needs some."""
WINDOWS_AT_ONCE = 4
"""Windows that a server assembles at once, each held as a window and as its chunks."""
BATCHES_AT_ONCE = 3
"""Batches held by a worker: the current one, the prefetched one, and the rows from which it is copied."""
ROW_ID_BYTES = 8
PLACE_BYTES = 8
"""Bytes per row for its position in the window."""
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class NodeMemory(NamedTuple):
    """Memory of a node, in bytes."""

    machine: int
    """Memory of the machine, or of the container."""
    shared: int | None
    """Size of `/dev/shm`, where Ray puts its object store; None on a system without it."""


def node_memory() -> NodeMemory:
    """Return the memory of the current node."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # absent, or "max"
            machine = min(machine, int(Path(file).read_text()))
    shared = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
    return NodeMemory(machine, shared.f_frsize * shared.f_blocks if shared is not None else None)


@dataclass(frozen=True, kw_only=True)
class StreamShape:
    """Quantities that determine the memory of one consumer (a worker of a trial): its training and held-out streams."""

    row_bytes: int
    """Bytes of a row over all sites that are read."""
    chunk_rows: int
    chunks_per_window: int
    lanes: int
    """Lanes that one worker serves."""
    batch_rows: int
    """Rows of one worker's part of a batch."""
    train_share: float
    """Share of the dataset's rows that are training rows (filtered rows are in no window)."""
    held_out_share: float
    dataset_rows: int
    epochs: int = 1
    """Epochs of the training, rounded up: each has separate windows."""

    @property
    def window_bytes(self) -> int:
        """Bytes of a window without filtered rows."""
        return self.chunks_per_window * self.chunk_rows * (self.row_bytes + ROW_ID_BYTES + PLACE_BYTES)

    @property
    def windows_per_lane(self) -> int:
        """Windows of a lane that a consumer holds: those that a batch can touch, and the next one.

        Where batches are small relative to windows, a batch that touches two of them does not yet request the next.
        """
        window_rows = max(1, int(self.chunks_per_window * self.chunk_rows * self.train_share))
        share = self.batch_rows // self.lanes
        return 2 if 2 * share <= window_rows else (share - 2) // window_rows + 3

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the windows that one consumer holds at once, training and held-out ones.

        The last window of a lane may be short: then two further batches of rows may be held.
        """
        share = self.train_share + self.held_out_share
        besides = 2 * self.batch_rows * (self.row_bytes + ROW_ID_BYTES)
        return int(self.lanes * self.windows_per_lane * self.window_bytes * share) + besides

    @property
    def epoch_bytes(self) -> int:
        """Bytes of the windows of one epoch, assuming that no row is filtered or held out."""
        return self.dataset_rows * (self.row_bytes + ROW_ID_BYTES + PLACE_BYTES)

    @property
    def all_bytes(self) -> int:
        """Bytes of all windows of the training, as `stream_memory` counts them."""
        return _all_bytes(self.epochs, self.epoch_bytes)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the batches in one consumer's own memory."""
        return BATCHES_AT_ONCE * self.batch_rows * (self.row_bytes + ROW_ID_BYTES)


def stream_shape(
    manifest: Manifest,
    sites: Sequence[str],
    *,
    window_bytes: int,
    lanes: int,
    batch_rows: int,
    workers: int,
    train_rows: int,
    held_out_rows: int,
    epochs: float = 1.0,
) -> StreamShape:
    """Return the shape for a trial of `workers` workers; for those with more lanes where lanes differ."""
    widest = max(site.row_bytes for site in manifest.sites.values())
    lanes_of_worker = -(-lanes // workers)
    return StreamShape(
        row_bytes=sum(manifest.sites[site].row_bytes for site in sites),
        chunk_rows=manifest.chunk_rows,
        chunks_per_window=max(1, window_bytes // (manifest.chunk_rows * widest)),
        lanes=lanes_of_worker,
        batch_rows=lanes_of_worker * (batch_rows // lanes),
        train_share=train_rows / manifest.rows,
        held_out_share=held_out_rows / manifest.rows,
        dataset_rows=manifest.rows,
        epochs=math.ceil(epochs),
    )


@dataclass(frozen=True, kw_only=True)
class StreamMemory:
    """Memory of streams on one node, in bytes."""

    kept: int
    """Windows that the server keeps in the object store."""
    mapped: int
    """Additional windows in the object store that consumers may hold when no two are at the same position."""
    buffers: int
    """Chunks and windows in the server's own memory, batches in that of the consumers."""
    consumers: int

    @property
    def shared(self) -> int:
        """Bytes in the object store."""
        return self.kept + self.mapped

    @property
    def total(self) -> int:
        return self.shared + self.buffers

    def __str__(self) -> str:
        return (
            f"stream: up to {size(self.total)} on a node: {size(self.kept)} of windows kept for all, "
            f"{size(self.mapped)} of windows in use by {self.consumers} worker(s), {size(self.buffers)} of buffers"
        )


def stream_memory(shapes: Sequence[StreamShape], *, consumers: int, object_store_bytes: int) -> StreamMemory:
    """Return the memory of `consumers` concurrent consumers on a node, each as large as the largest of `shapes`.

    The server keeps windows in the part of its share that consumers leave, at least enough for one consumer and at most
    all windows: those of every epoch, and the held-out ones.
    """
    mapped_each = max(shape.mapped_bytes for shape in shapes)
    window = max(shape.window_bytes for shape in shapes)
    epoch = max(shape.epoch_bytes for shape in shapes)
    # Two epochs can be in use at once, each with at most all of its windows.
    mapped = min(consumers * mapped_each, 2 * epoch)
    left = int(WINDOWS_SHARE * object_store_bytes) - mapped
    kept = max(min(mapped_each, 2 * epoch), min(left, int(KEPT_SHARE * object_store_bytes)))
    everything = _all_bytes(max(shape.epochs for shape in shapes), epoch)
    buffers = 2 * WINDOWS_AT_ONCE * window + consumers * max(shape.batch_bytes for shape in shapes)
    return StreamMemory(kept=min(kept, everything), mapped=mapped, buffers=buffers, consumers=consumers)


def check_memory(memory: StreamMemory, *, object_store_bytes: int, node: NodeMemory) -> None:
    """Raise UserError with both numbers and what to lower when a node cannot hold the streams."""
    lower = "lower data.window_bytes or data.lanes, or run fewer workers at once (resources.cpus_per_worker)"
    usable = int(WINDOWS_SHARE * object_store_bytes)
    wants = f"{memory.consumers} worker(s) on a node hold windows of up to {size(memory.shared)}"
    if memory.shared > usable:
        has = f"Ray's object store has room for {size(usable)} before it writes to disk"
        raise UserError(f"data.window_bytes: {wants}, {has}; {lower}")
    if node.shared is not None and memory.shared > node.shared:
        raise UserError(
            f"data.window_bytes: {wants}, /dev/shm has {size(node.shared)}; enlarge it (docker: --shm-size), or {lower}"
        )
    free = int(MEMORY_SHARE * node.machine)
    if memory.total > free:
        raise UserError(
            f"data.window_bytes: streams take up to {size(memory.total)} on a node with {size(node.machine)} of "
            f"memory, of which {size(free)} may be theirs; {lower}"
        )


def _all_bytes(epochs: int, epoch_bytes: int) -> int:
    """Return the bytes of all windows: each epoch and the held-out rows have separate ones."""
    return (epochs + 1) * epoch_bytes
