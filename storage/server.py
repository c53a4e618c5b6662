"""The WindowServer: one actor per node that reads windows once and shares them with all workers of all trials there.

Windows are put into Ray's object store; workers on the node map the same block without a copy. `lexray.storage.shelf`
selects the windows that are kept; an evicted window's memory is freed when no worker holds it any more.

The actor's event loop only does bookkeeping. One thread pool assembles windows (fetch, verify, permute, publish),
another reads their chunks.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.objects.retries import retried_calls
from lexray.storage.order import WindowKey
from lexray.storage.reader import NOTHING, ReadCost
from lexray.storage.shelf import PublishedWindow, Shelf
from lexray.storage.stream_memory import WINDOWS_AT_ONCE, NodeMemory, node_memory
from lexray.storage.windows import Described, StreamSpec, Window, WindowReader, local_chunks

T = TypeVar("T")

FETCH_ATTEMPTS = 20
LOST = (ray.exceptions.ObjectLostError, ray.exceptions.ActorUnavailableError)
"""Errors that a consumer sees when a server died: its blocks are lost, or it is restarting."""


@dataclass(kw_only=True)
class ServerStats:
    """Statistics of a server since its last start."""

    pid: int
    read: ReadCost = NOTHING
    """Bytes of chunks by where they were read."""
    bytes_served: int = 0
    windows_read: int = 0
    windows_served: int = 0
    bytes_kept: int = 0
    """Bytes of the windows currently kept."""
    retries: int = 0
    """Retried calls to the store of its process."""


Publish = Callable[[Callable[[], ServerStats]], None]
"""Starts publishing a server's statistics, which it polls from any thread."""


class Answer(NamedTuple):
    """The server's response to a request for a window."""

    ref: ray.ObjectRef
    """Reference to the window; nested in this tuple so that Ray does not resolve it."""
    cost: ReadCost
    """Bytes that were read for this request; windows already requested by others cost nothing."""
    retries: int
    """Calls to the store that the server retried since its last report."""


class WindowServer:
    """Window server, an asynchronous Ray actor; see `start_server`."""

    def __init__(self, keep_bytes: int, cache: CacheSettings | None, publish: Publish | None = None) -> None:
        self._shelf = Shelf(max_bytes=keep_bytes)
        self._chunks = local_chunks(cache)
        self._pool = ThreadPoolExecutor(WINDOWS_AT_ONCE, thread_name_prefix="windows")
        self._opening: dict[StreamSpec, asyncio.Future[tuple[WindowReader, Described]]] = {}
        self._reading: dict[tuple[StreamSpec, WindowKey], asyncio.Task[tuple[PublishedWindow, ReadCost]]] = {}
        self._stats = ServerStats(pid=os.getpid())
        self._retries_told = 0
        if publish is not None:
            publish(self._stats_now)

    async def describe(self, spec: StreamSpec) -> Described:
        """Return the stream's properties that are known before its first step."""
        return (await self._open(spec))[1]

    async def window(
        self, spec: StreamSpec, key: WindowKey, consumer: str = "", wanted_from: WindowKey | None = None
    ) -> Answer:
        """Return the window's block; concurrent requests for it share one read."""
        if wanted_from is not None:
            self._shelf.want_from(consumer, spec, wanted_from)
        block, cost = await self._block(spec, key)
        self._stats.windows_served += 1
        self._stats.bytes_served += block.bytes
        return Answer(block.ref, cost, self._new_retries())

    async def leave(self, spec: StreamSpec, consumer: str) -> None:
        """Unsubscribe a consumer that has ended."""
        self._shelf.leave(consumer, spec)

    async def stats(self) -> ServerStats:
        return self._stats_now()

    def _stats_now(self) -> ServerStats:
        return replace(self._stats, bytes_kept=self._shelf.bytes, retries=retried_calls())

    async def memory(self) -> NodeMemory:
        """Return the memory of this node."""
        return node_memory()

    async def _block(self, spec: StreamSpec, key: WindowKey) -> tuple[PublishedWindow, ReadCost]:
        block = self._shelf.get(spec, key)
        if block is None:
            reading = self._reading.get((spec, key))
            if reading is None:
                reading = self._reading[spec, key] = asyncio.create_task(self._read(spec, key))
                return await asyncio.shield(reading)
            block = (await asyncio.shield(reading))[0]
        return block, ReadCost(memory_bytes=block.raw_bytes)

    async def _open(self, spec: StreamSpec) -> tuple[WindowReader, Described]:
        if spec not in self._opening:
            reader = WindowReader(spec, self._chunks)
            self._opening[spec] = self._in_thread(lambda: (reader, reader.describe()))
        try:
            return await asyncio.shield(self._opening[spec])
        except Exception:
            self._opening.pop(spec, None)  # the next request retries
            raise

    async def _read(self, spec: StreamSpec, key: WindowKey) -> tuple[PublishedWindow, ReadCost]:
        def publish() -> tuple[PublishedWindow, ReadCost]:
            window = reader.read(key)
            return PublishedWindow(ray.put(window), window.bytes, window.cost.bytes), window.cost

        try:
            reader, _ = await self._open(spec)
            block, cost = await self._in_thread(publish)
            self._shelf.put(spec, key, block)
        finally:
            del self._reading[spec, key]
        self._stats.windows_read += 1
        self._stats.read = self._stats.read.plus(cost)
        return block, cost

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _new_retries(self) -> int:
        told, self._retries_told = self._retries_told, retried_calls()
        return self._retries_told - told


@dataclass
class ServedWindows:
    """Window source of one consumer that gets windows from the node's server."""

    spec: StreamSpec
    server: Any
    """Handle of a `WindowServer` actor."""
    consumer: str = ""
    """Identifier of the consumer, stable over restarts of its process and unique at any time."""
    _retries: int = 0

    def describe(self) -> Described:
        return self._described

    @cached_property
    def _described(self) -> Described:
        return _get(self.server.describe.remote(self.spec))

    def request(self, key: WindowKey, *, wanted_from: WindowKey | None = None) -> tuple[WindowKey, ray.ObjectRef]:
        return key, self.server.window.remote(self.spec, key, self.consumer, wanted_from)

    def fetch(self, handle: object) -> Window:
        """Map the window's block. A block lost with its server is requested again and is identical."""
        assert isinstance(handle, tuple)
        key, answer = handle
        for attempt in range(FETCH_ATTEMPTS):
            try:
                given: Answer = _get(answer)
                window: Window = _get(given.ref)
            except LOST:
                if attempt == FETCH_ATTEMPTS - 1:
                    raise
                answer = self.server.window.remote(self.spec, key)
                continue
            self._retries += given.retries
            return window._replace(cost=given.cost)
        raise AssertionError("unreachable")

    def retries(self) -> int:
        return self._retries

    def leave(self) -> None:
        self.server.leave.remote(self.spec, self.consumer)


def _get(ref: ray.ObjectRef) -> Any:
    """Return the server's response; raises its original error, not wrapped in a remote traceback."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error


def start_server(
    node_id: str, *, keep_bytes: int, cache: CacheSettings | None = None, publish: Publish | None = None
) -> Any:
    """Start a window server on the node with this id, owned by the caller: it ends with the caller's process.

    It keeps windows of up to `keep_bytes` in the node's object store. `publish` is called in its process.
    """
    place = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return (
        ray.remote(WindowServer)
        .options(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=place)
        .remote(keep_bytes, cache, publish)
    )
