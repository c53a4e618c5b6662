"""Description of one trial of a running sweep, as sent to Ray."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ray.actor import ActorHandle

from lexray.storage.chunk_cache import CacheSettings
from lexray.storage.store import Store
from lexray.tuning.endings.early_stopper import EarlyStopper
from lexray.tuning.fence import Fence
from lexray.tuning.placement.allocator import MeshOption, MeshOptions
from lexray.tuning.ray_backend.allocator_client import AllocatorClient
from lexray.tuning.ray_backend.placer import Placement
from lexray.tuning.sweep_folder import SweepFolder
from lexray.tuning.trials import Trial


@dataclass(frozen=True, kw_only=True)
class TrialRun:
    """A trial with its settings in a running sweep, as sent to Ray."""

    trial: Trial
    folder: SweepFolder
    sweep: str = ""
    """Display name of the sweep."""
    allocator: AllocatorClient | None = None
    """Allocator of its nodes; None: Ray places its workers, and there is one attempt."""
    mesh_options: MeshOptions | None = None
    """Meshes that it may use; None: only its own."""
    nodes: tuple[str, ...] = ()
    """Node of each worker of this attempt; empty: any."""
    servers: dict[str, ActorHandle] = field(default_factory=dict)
    """Window server of each of its nodes, by node id."""
    cache: CacheSettings | None = None
    """Chunk cache on the disk of each node."""
    retries: int = 3
    early_stopper: EarlyStopper | None = None
    """Early stopping; None: it is trained to the end."""
    deadline_s: float | None = None
    """Unix time at which the trial saves its state and ends."""
    attempt: str = ""
    """Random token of this attempt."""
    ray_storage_path: str | None = None
    """Folder of Ray's own files; a cache."""

    @property
    def store(self) -> Store:
        return self.folder.trial_store(self.trial.id)

    @property
    def fence(self) -> Fence:
        """Fence against other attempts at the trial."""
        return Fence(store=self.store, token=self.attempt)

    @property
    def meshes(self) -> MeshOptions:
        """Meshes on which it may run."""
        option = MeshOption(mesh=self.trial.config.mesh, footprint=self.trial.footprint)
        return self.mesh_options if self.mesh_options is not None else MeshOptions(all=(option,))

    def placed(self, placement: Placement) -> TrialRun:
        """Return the trial on the mesh and nodes of this attempt."""
        trial = self.trial.on_mesh(placement.option.mesh)
        return replace(self, trial=trial, nodes=placement.nodes, servers=placement.servers)
