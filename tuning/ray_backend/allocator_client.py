"""Clients that request nodes for the driver's queue and trial processes, from the placer's actor or in process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

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


@dataclass(frozen=True)
class RemoteAllocator:
    """Calls a placer's actor, from any process of the cluster."""

    placer: Any
    """Handle of the actor."""

    def claim(self, trial: str, name: str, mesh_options: MeshOptions) -> bool:
        return bool(ray.get(self.placer.claim.remote(trial, name, mesh_options)))

    def take(self, trial: str, name: str, mesh_options: MeshOptions) -> Placement | None:
        placement: Placement | None = ray.get(self.placer.take.remote(trial, name, mesh_options))
        return placement

    def release(self, trial: str) -> None:
        ray.get(self.placer.release.remote(trial))

    def lost(self, trial: str) -> list[str]:
        return list(ray.get(self.placer.lost.remote(trial)))

    def should_move(self, trial: str, mesh_options: MeshOptions) -> bool:
        return bool(ray.get(self.placer.should_move.remote(trial, mesh_options)))

    def has_room(self, footprint: Footprint) -> bool:
        return bool(ray.get(self.placer.has_room.remote(footprint)))

    def overdue(self, trial: str) -> str:
        return str(ray.get(self.placer.overdue.remote(trial)))

    def waiting(self) -> list[str]:
        """Return what each waiting trial waits for, one line each."""
        return list(ray.get(self.placer.waiting.remote()))

    def launch_failures(self) -> list[str]:
        """Return why nodes are not launched, one line for each pool."""
        return list(ray.get(self.placer.launch_failures.remote()))


@contextmanager
def placing(servers: WindowServers, wait_at_most_s: float | Literal["auto"] = "auto") -> Iterator[RemoteAllocator]:
    """Run a placer on the cluster's head, and window servers where its trials run, within the context."""
    options = ray.remote(Placer).options(num_cpus=0, resources=ON_HEAD)
    placer: Any = options.remote(servers, wait_at_most_s=wait_at_most_s)
    try:
        yield RemoteAllocator(placer)
    finally:
        ray.get(placer.close.remote())
        ray.kill(placer)
