"""The WindowServer: one actor a node that reads windows once and shares them with every worker of every trial there.

Windows are put into Ray's object store; workers on the node map the same block without a copy. What is kept is bounded
by `cache_bytes`: the windows used longest ago are let go first, and their memory is freed when no worker holds them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from storage.manifest import Manifest
from storage.order import WindowKey
from storage.windows import StreamSpec, Window, WindowReader

PARALLEL_REQUESTS = 8
FETCH_ATTEMPTS = 5


@dataclass(kw_only=True)
class ServerStats:
    """What a server did so far."""

    bytes_read: int = 0
    """Bytes of windows read from the store."""
    bytes_served: int = 0
    windows_read: int = 0
    windows_served: int = 0


class WindowServer:
    """Runs as a Ray actor with several threads; see `start_server`."""

    def __init__(self, cache_bytes: int) -> None:
        self._cache_bytes = cache_bytes
        self._readers: dict[StreamSpec, WindowReader] = {}
        self._blocks: OrderedDict[tuple[StreamSpec, WindowKey], tuple[ray.ObjectRef, int]] = OrderedDict()
        self._reading: dict[tuple[StreamSpec, WindowKey], threading.Lock] = {}
        self._lock = threading.Lock()
        self._stats = ServerStats()

    def describe(self, spec: StreamSpec) -> tuple[Manifest, np.ndarray]:
        """The stream's manifest and selected rows of each chunk."""
        reader = self._reader(spec)
        return reader.manifest, reader.selected.counts

    def window(self, spec: StreamSpec, key: WindowKey) -> list[ray.ObjectRef]:
        """A reference (in a list, so that Ray does not resolve it here) to the window's block."""
        name = (spec, key)
        with self._lock:
            one_reader = self._reading.setdefault(name, threading.Lock())
        with one_reader:  # two trials asking at once read the window once
            ref, size = self._blocks.get(name) or self._read(name)
        with self._lock:
            if name in self._blocks:
                self._blocks.move_to_end(name)
            self._stats.windows_served += 1
            self._stats.bytes_served += size
        return [ref]

    def stats(self) -> ServerStats:
        return self._stats

    def _reader(self, spec: StreamSpec) -> WindowReader:
        with self._lock:
            reader = self._readers.setdefault(spec, WindowReader(spec))
            reader.selected  # noqa: B018 - computed once, under the lock
            return reader

    def _read(self, name: tuple[StreamSpec, WindowKey]) -> tuple[ray.ObjectRef, int]:
        spec, key = name
        window = self._reader(spec).read(key)
        block = ray.put(window), window.bytes
        with self._lock:
            self._blocks[name] = block
            self._stats.windows_read += 1
            self._stats.bytes_read += window.bytes
            held = sum(size for _, size in self._blocks.values())
            while held > self._cache_bytes and len(self._blocks) > 1:
                oldest, (_, freed) = self._blocks.popitem(last=False)
                self._reading.pop(oldest, None)
                held -= freed
        return block


@dataclass(frozen=True)
class ServedWindows:
    """A stream's windows from the node's server."""

    spec: StreamSpec
    server: Any
    """Handle of a `WindowServer` actor."""

    def describe(self) -> tuple[Manifest, np.ndarray]:
        described: tuple[Manifest, np.ndarray] = _get(self.server.describe.remote(self.spec))
        return described

    def selected_rows(self) -> np.ndarray:
        return self.describe()[1]

    def request(self, key: WindowKey) -> tuple[WindowKey, ray.ObjectRef]:
        return key, self.server.window.remote(self.spec, key)

    def fetch(self, handle: object) -> Window:
        """Map the window's block. A block lost with its server is asked for anew: the server gives the same one."""
        assert isinstance(handle, tuple)
        key, answer = handle
        for attempt in range(FETCH_ATTEMPTS):
            try:
                window: Window = _get(_get(answer)[0])
                return window
            except (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError):
                if attempt == FETCH_ATTEMPTS - 1:
                    raise
                answer = self.server.window.remote(self.spec, key)
        raise AssertionError("unreachable")


def _get(ref: ray.ObjectRef) -> Any:
    """What the server answers; an error it met is raised as it was, not wrapped in a remote traceback."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def start_server(node_id: str, *, cache_bytes: int) -> Any:
    """A window server on the node with this id. Owned by the caller: it ends with the caller's process."""
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return (
        ray.remote(WindowServer)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=PARALLEL_REQUESTS,
            scheduling_strategy=place,
        )
        .remote(cache_bytes)
    )
