"""Which windows a server keeps: a bounded number of bytes, none that all who may want it have left behind.

What decides here is plain bookkeeping; the blocks themselves are opaque.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from storage.order import WindowKey
from storage.windows import StreamSpec


class Block(NamedTuple):
    """A window that was published."""

    ref: Any
    """Reference to it in Ray's object store."""
    bytes: int
    raw_bytes: int
    """Bytes of the chunks that it was made of."""


Lane = tuple[StreamSpec, int]


@dataclass(kw_only=True)
class Shelf:
    """Blocks by stream and key.

    A consumer that trains says from where on it wants a lane's windows; a window that lies before what every such
    consumer wants is let go. The others go when `max_bytes` are full, used longest ago first; the newest one stays.
    """

    max_bytes: int
    bytes: int = 0
    """Of all blocks."""
    _blocks: OrderedDict[tuple[StreamSpec, WindowKey], Block] = field(default_factory=OrderedDict)
    _wanted_from: defaultdict[Lane, dict[str, WindowKey]] = field(default_factory=lambda: defaultdict(dict))

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, spec: StreamSpec, key: WindowKey) -> Block | None:
        """The block, which is thereby the newest; None when it is not kept."""
        block = self._blocks.get((spec, key))
        if block is not None:
            self._blocks.move_to_end((spec, key))
        return block

    def put(self, spec: StreamSpec, key: WindowKey, block: Block) -> None:
        self._blocks[spec, key] = block
        self.bytes += block.bytes
        while self.bytes > self.max_bytes and len(self._blocks) > 1:
            self._drop(next(iter(self._blocks)))

    def want_from(self, consumer: str, spec: StreamSpec, key: WindowKey) -> None:
        """The consumer will not ask for windows of this lane that come before `key`."""
        wanted = self._wanted_from[spec, key.lane]
        if wanted.get(consumer) == key:
            return
        wanted[consumer] = key
        self._drop_before(spec, key.lane)

    def leave(self, consumer: str, spec: StreamSpec) -> None:
        """The consumer wants no window of the stream any more."""
        for (other, lane), wanted in self._wanted_from.items():
            if other == spec and wanted.pop(consumer, None) is not None:
                self._drop_before(spec, lane)

    def _drop_before(self, spec: StreamSpec, lane: int) -> None:
        wanted = self._wanted_from[spec, lane]
        if not wanted:
            return
        first = min(wanted.values())
        for name in [(s, k) for s, k in self._blocks if s == spec and k.lane == lane and k < first]:
            self._drop(name)

    def _drop(self, name: tuple[StreamSpec, WindowKey]) -> None:
        self.bytes -= self._blocks.pop(name).bytes
