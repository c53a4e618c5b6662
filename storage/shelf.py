"""Cache of a server's windows: eviction by the consumers' progress, then LRU.

This is pure bookkeeping; blocks are opaque.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lexray.storage.order import WindowKey
from lexray.storage.windows import StreamSpec


class PublishedWindow(NamedTuple):
    """A published window."""

    ref: Any
    """Reference in Ray's object store."""
    bytes: int
    raw_bytes: int
    """Bytes of the chunks from which it was made."""


Lane = tuple[StreamSpec, int]


@dataclass(kw_only=True)
class Shelf:
    """Cache of blocks by stream and key, at most `max_bytes`; the newest block is always kept.

    Consumers report from which window of a lane on they read. Windows that all consumers have passed are evicted first,
    then the least recently used. So windows that will be read again (by lagging trainings; held-out windows) are kept,
    and as far as there is space, a training that starts a little later finds the others' windows.
    """

    max_bytes: int
    bytes: int = 0
    """Total bytes of all blocks."""
    _blocks: OrderedDict[tuple[StreamSpec, WindowKey], PublishedWindow] = field(default_factory=OrderedDict)
    _wanted_from: defaultdict[Lane, dict[str, WindowKey]] = field(default_factory=lambda: defaultdict(dict))

    def get(self, spec: StreamSpec, key: WindowKey) -> PublishedWindow | None:
        """Return the block and mark it most recently used; None when it is not cached."""
        block = self._blocks.get((spec, key))
        if block is not None:
            self._blocks.move_to_end((spec, key))
        return block

    def put(self, spec: StreamSpec, key: WindowKey, block: PublishedWindow) -> None:
        self._blocks[spec, key] = block
        self.bytes += block.bytes
        while self.bytes > self.max_bytes and len(self._blocks) > 1:
            *older, _ = self._blocks
            first = next((name for name in older if self._is_behind_all(*name)), older[0])
            self.bytes -= self._blocks.pop(first).bytes

    def want_from(self, consumer: str, spec: StreamSpec, key: WindowKey) -> None:
        """Record that the consumer will never request an earlier window of this lane than `key` (eviction hint)."""
        self._wanted_from[spec, key.lane][consumer] = key

    def leave(self, consumer: str, spec: StreamSpec) -> None:
        """Record that the consumer will request no more windows of the stream."""
        for (other, _), wanted in self._wanted_from.items():
            if other == spec:
                wanted.pop(consumer, None)

    def _is_behind_all(self, spec: StreamSpec, key: WindowKey) -> bool:
        wanted = self._wanted_from[spec, key.lane]
        return bool(wanted) and key < min(wanted.values())
