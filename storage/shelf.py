"""Which windows a server keeps: those that somebody may still want, as far as they fit.

What decides here is plain bookkeeping; the blocks themselves are opaque.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lexray.storage.order import WindowKey
from lexray.storage.windows import StreamSpec


class PublishedWindow(NamedTuple):
    """A window that was published."""

    ref: Any
    """Reference to it in Ray's object store."""
    bytes: int
    raw_bytes: int
    """Bytes of the chunks that it was made of."""


Lane = tuple[StreamSpec, int]


@dataclass(kw_only=True)
class Shelf:
    """Blocks by stream and key, `max_bytes` of them; the newest one always stays.

    A training says from where on it wants a lane's windows. Windows that every training has behind it make room first,
    then those used longest ago: room is left to what will be wanted again (trainings that lag, held-out windows), and
    as long as there is room, a training that starts a little later finds what the others had.
    """

    max_bytes: int
    bytes: int = 0
    """Of all blocks."""
    _blocks: OrderedDict[tuple[StreamSpec, WindowKey], PublishedWindow] = field(default_factory=OrderedDict)
    _wanted_from: defaultdict[Lane, dict[str, WindowKey]] = field(default_factory=lambda: defaultdict(dict))

    def get(self, spec: StreamSpec, key: WindowKey) -> PublishedWindow | None:
        """The block, which is thereby the one used last; None when it is not kept."""
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
        """The consumer will not ask for windows of this lane that come before `key`."""
        self._wanted_from[spec, key.lane][consumer] = key

    def leave(self, consumer: str, spec: StreamSpec) -> None:
        """The consumer wants no window of the stream any more."""
        for (other, _), wanted in self._wanted_from.items():
            if other == spec:
                wanted.pop(consumer, None)

    def _is_behind_all(self, spec: StreamSpec, key: WindowKey) -> bool:
        wanted = self._wanted_from[spec, key.lane]
        return bool(wanted) and key < min(wanted.values())
