"""How the driver's queue and a trial's process ask for nodes: through the placer's actor, or one in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import ray

from lexray.tuning.placement.book import Wishes
from lexray.tuning.ray_backend.placer import ON_HEAD, Placement, Placer
from lexray.tuning.ray_backend.window_servers import WindowServers
from lexray.tuning.trials import Footprint


class Rooms(Protocol):
    """Nodes for the trials of a sweep; see `lexray.tuning.ray_backend.placer.Placer` for what each call does."""

    def claim(self, trial: str, name: str, wishes: Wishes) -> bool: ...
    def take(self, trial: str, name: str, wishes: Wishes) -> Placement | None: ...
    def release(self, trial: str) -> None: ...
    def lost(self, trial: str) -> list[str]: ...
    def should_move(self, trial: str, wishes: Wishes) -> bool: ...
    def has_room(self, footprint: Footprint) -> bool: ...
    def overdue(self, trial: str) -> str: ...


@dataclass(frozen=True)
class RemoteRooms:
    """Those of a placer's actor, from any process of the cluster."""

    placer: Any
    """Handle of the actor."""

    def claim(self, trial: str, name: str, wishes: Wishes) -> bool:
        return bool(ray.get(self.placer.claim.remote(trial, name, wishes)))

    def take(self, trial: str, name: str, wishes: Wishes) -> Placement | None:
        placement: Placement | None = ray.get(self.placer.take.remote(trial, name, wishes))
        return placement

    def release(self, trial: str) -> None:
        ray.get(self.placer.release.remote(trial))

    def lost(self, trial: str) -> list[str]:
        return list(ray.get(self.placer.lost.remote(trial)))

    def should_move(self, trial: str, wishes: Wishes) -> bool:
        return bool(ray.get(self.placer.should_move.remote(trial, wishes)))

    def has_room(self, footprint: Footprint) -> bool:
        return bool(ray.get(self.placer.has_room.remote(footprint)))

    def overdue(self, trial: str) -> str:
        return str(ray.get(self.placer.overdue.remote(trial)))

    def waiting(self) -> list[str]:
        """Who waits for what, one line each."""
        return list(ray.get(self.placer.waiting.remote()))

    def launch_failures(self) -> list[str]:
        """Why nodes are not launched, one line for each pool."""
        return list(ray.get(self.placer.launch_failures.remote()))


@contextmanager
def placing(servers: WindowServers, wait_at_most_s: float | Literal["auto"] = "auto") -> Iterator[RemoteRooms]:
    """A placer on the head of the connected cluster, and window servers where its trials run, as long as the block."""
    options = ray.remote(Placer).options(num_cpus=0, resources=ON_HEAD)
    placer: Any = options.remote(servers, wait_at_most_s=wait_at_most_s)
    try:
        yield RemoteRooms(placer)
    finally:
        ray.get(placer.close.remote())
        ray.kill(placer)
