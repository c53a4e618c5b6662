"""A trial as plain values: its configuration, and the resources of its workers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from lexray.training.config import TrainingConfig
from lexray.training.mesh.settings import MeshConfig
from lexray.tuning.file.axes import Point


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Cluster resources of a trial while it runs."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    timeout_s: float = 600.0
    """Seconds that the workers wait for each other."""

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker

    @property
    def on_gpu(self) -> bool:
        """Whether its workers compute on GPUs, regardless of the GPUs of their nodes."""
        return self.gpus_per_worker > 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A dictionary to train, and its resources."""

    id: str
    """Computed once on the driver, so that a worker with other defaults cannot derive another id."""
    name: str
    """Display name, unique in its sweep."""
    config: TrainingConfig
    footprint: Footprint
    point: Point = field(default_factory=dict)
    """Point on the sweep's axes."""
    number: int | None = None
    """Index in a search that proposes points while the sweep runs."""
    auto_gpus: bool = False
    """Whether its GPUs are still to be chosen from those of the nodes; until then it has none."""
    auto_mesh: bool = False
    """Whether its mesh is still to be chosen for the nodes (`lexray.tuning.planning.mesh_choice`)."""

    def on_mesh(self, mesh: MeshConfig) -> Trial:
        """Return the trial with this mesh, and a worker for each part of it."""
        footprint = replace(self.footprint, workers=mesh.data * mesh.feature)
        return replace(self, config=replace(self.config, mesh=mesh), footprint=footprint, auto_mesh=False)
