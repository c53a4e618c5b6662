"""A trial as plain values: its configuration, and what its workers take from the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from lexray.training.config import TrainingConfig
from lexray.tuning.file.axes import Point


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a whole trial takes from the cluster while it runs."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    timeout_s: float = 600.0
    """How long the workers wait for each other."""

    @property
    def cpus(self) -> float:
        return self.workers * self.cpus_per_worker

    @property
    def gpus(self) -> float:
        return self.workers * self.gpus_per_worker

    @property
    def on_gpu(self) -> bool:
        """Whether its workers compute on GPUs. Nothing else decides it, whatever GPUs their nodes have."""
        return self.gpus_per_worker > 0


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One dictionary to train, and with what."""

    id: str
    """Computed once on the driver, so that a worker with other defaults cannot derive another id."""
    name: str
    """For people; unique in its sweep."""
    config: TrainingConfig
    footprint: Footprint
    point: Point = field(default_factory=dict)
    """Of the sweep's axes."""
    number: int | None = None
    """Its place in a search that chooses points while the sweep runs."""
    auto_gpus: bool = False
    """Whether GPUs are still to be chosen for it, from what the nodes have; until then it has none."""
    auto_mesh: bool = False
    """Whether its mesh is still to be chosen, from what the nodes have (`lexray.tuning.planning.mesh_choice`)."""
