"""Clients that request nodes for the driver's queue and trial processes, from the placer's actor or in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import ray

from lexray.tuning.placement.allocator import MeshOptions
from lexray.tuning.ray_backend.placer import ON_HEAD, Placement, Placer
from lexray.tuning.ray_backend.window_servers import WindowServers
from lexray.tuning.trials import Footprint


class AllocatorClient(Protocol):
    """Allocates nodes to the trials of a sweep; see `lexray.tuning.ray_backend.placer.Placer` for each call."""

    def claim(self, trial: str, name: str, mesh_options: MeshOptions) -> bool: ...
    def take(self, trial: str, name: str, mesh_options: MeshOptions) -> Placement | None: ...
    def release(self, trial: str) -> None: ...
    def lost(self, trial: str) -> list[str]: ...
    def should_move(self, trial: str, mesh_options: MeshOptions) -> bool: ...
    def has_room(self, footprint: Footprint) -> bool: ...
    def overdue(self, trial: str) -> str: ...
    def waiting(self) -> list[str]: ...
    def launch_failures(self) -> list[str]: ...


@dataclass(frozen=True)
class RemoteAllocator:
    """Calls the methods of a placer's actor, from any process of the cluster, and waits for what they return."""

    placer: Any
    """Handle of the actor."""

    def __getattr__(self, name: str) -> Any:
        if name == "placer" or name.startswith("_"):  # as when it is unpickled, before it has the handle
            raise AttributeError(name)
        return lambda *arguments: ray.get(getattr(self.placer, name).remote(*arguments))


@contextmanager
def placing(servers: WindowServers, wait_at_most_s: float | Literal["auto"] = "auto") -> Iterator[AllocatorClient]:
    """Run a placer on the cluster's head, and window servers where its trials run, within the context."""
    options = ray.remote(Placer).options(num_cpus=0, resources=ON_HEAD)
    placer: Any = options.remote(servers, wait_at_most_s=wait_at_most_s)
    try:
        yield cast(AllocatorClient, RemoteAllocator(placer))
    finally:
        ray.get(placer.close.remote())
        ray.kill(placer)
