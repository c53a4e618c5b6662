"""What is sent to Ray of one trial of a running sweep."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ray.actor import ActorHandle

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.store import Store
from lexray.tuning.endings.verdicts import Judge
from lexray.tuning.fence import Fence
from lexray.tuning.placement.allocator import MeshOption, MeshOptions
from lexray.tuning.ray_backend.allocator_client import AllocatorClient
from lexray.tuning.ray_backend.attempts import on_placement
from lexray.tuning.ray_backend.placer import Placement
from lexray.tuning.sweep_folder import SweepFolder
from lexray.tuning.trials import Trial


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """A trial and its place in a running sweep; what is sent to Ray."""

    trial: Trial
    folder: SweepFolder
    sweep: str = ""
    """Name of the sweep, for people."""
    allocator: AllocatorClient | None = None
    """Where it gets its nodes; None: nobody chooses them, and there is one attempt."""
    mesh_options: MeshOptions | None = None
    """The meshes that it may have; None: its own alone."""
    nodes: tuple[str, ...] = ()
    """Node of each worker of this attempt; empty: any."""
    servers: dict[str, ActorHandle] = field(default_factory=dict)
    """Window server of each of its nodes, by node id."""
    cache: CacheSettings | None = None
    """Chunks on the disk of each node."""
    retries: int = 3
    judge: Judge | None = None
    """Of early stopping; None: trained to the end."""
    deadline_s: float | None = None
    """Unix time at which the trial saves its state and ends."""
    attempt: str = ""
    """Token of this attempt, drawn by whoever begins it."""
    ray_storage_path: str | None = None
    """Where Ray keeps files of its own; a cache."""

    @property
    def store(self) -> Store:
        return self.folder.trial_store(self.trial.id)

    @property
    def fence(self) -> Fence:
        """Between this attempt and others at the trial."""
        return Fence(store=self.store, token=self.attempt)

    @property
    def meshes(self) -> MeshOptions:
        """Those on which it may run."""
        option = MeshOption(mesh=self.trial.config.mesh, footprint=self.trial.footprint)
        return self.mesh_options if self.mesh_options is not None else MeshOptions(all=(option,))

    def placed(self, placement: Placement) -> TrialRun:
        """One attempt at it, on the mesh and the nodes that it has this time."""
        trial = on_placement(self.trial, placement)
        return replace(self, trial=trial, nodes=placement.nodes, servers=placement.servers)
