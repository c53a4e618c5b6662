"""A mesh of ranks: data x feature, the process groups along its axes, and DeepSpeed's `mpu` interface to it.

Rank r is at data r // feature, feature r % feature: the ranks that split one dictionary's latents communicate most, so
they are neighbours and share a node where the nodes' sizes allow it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from lexray.training.mesh.axes import LOCAL_DATA, LOCAL_FEATURE, ONE_PROCESS, Axes
from lexray.training.mesh.communicator import ProcessGroup, Traffic
from lexray.training.mesh.split_axes import SplitDataAxis, SplitFeatureAxis, SplitWorldAxis


@dataclass(frozen=True, kw_only=True)
class MeshCoord:
    """Coordinates of a rank in a mesh."""

    rank: int
    data: int
    """Number of ranks along the data axis."""
    feature: int
    """Number of ranks along the feature axis."""

    @property
    def data_index(self) -> int:
        return self.rank // self.feature

    @property
    def feature_index(self) -> int:
        return self.rank % self.feature

    @property
    def size(self) -> int:
        return self.data * self.feature

    def data_ranks(self) -> list[list[int]]:
        """Return the groups along the data axis: ranks with the same latents and different rows."""
        return [[d * self.feature + f for d in range(self.data)] for f in range(self.feature)]

    def feature_ranks(self) -> list[list[int]]:
        """Return the groups along the feature axis: ranks with the same rows and different latents."""
        return [[d * self.feature + f for f in range(self.feature)] for d in range(self.data)]


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """A rank's mesh, connected."""

    place: MeshCoord
    axes: Axes
    traffic: Traffic = field(default_factory=Traffic)
    """Bytes that this rank contributed to the collectives of the axes."""
    data_group: dist.ProcessGroup | None = None
    feature_group: dist.ProcessGroup | None = None

    # DeepSpeed's `mpu` interface -------------------------------------------------------------------------------

    def get_model_parallel_rank(self) -> int:
        return self.place.feature_index

    def get_model_parallel_world_size(self) -> int:
        return self.place.feature

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        return self.feature_group

    def get_data_parallel_rank(self) -> int:
        return self.place.data_index

    def get_data_parallel_world_size(self) -> int:
        return self.place.data

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        return self.data_group


ONE_RANK = Mesh(place=MeshCoord(rank=0, data=1, feature=1), axes=ONE_PROCESS)


def connect(place: MeshCoord, device: torch.device, timeout_s: float | None = None) -> Mesh:
    """Connect the mesh of all processes of the default group (collective).

    A collective along an axis fails after `timeout_s`, by default torch's 10 or 30 minutes: groups do not inherit the
    timeout of the default one.
    """
    if place.size == 1:
        return ONE_RANK
    traffic = Traffic()
    everyone = ProcessGroup(place.rank, place.size, device, None, traffic)
    timeout = None if timeout_s is None else timedelta(seconds=timeout_s)
    data_group, feature_group = _group_of(place.data_ranks(), timeout), _group_of(place.feature_ranks(), timeout)
    columns = ProcessGroup(place.feature_index, place.feature, device, feature_group, traffic)
    rows = ProcessGroup(place.data_index, place.data, device, data_group, traffic)
    axes = Axes(
        SplitDataAxis(rows) if place.data > 1 else LOCAL_DATA,
        SplitFeatureAxis(columns) if place.feature > 1 else LOCAL_FEATURE,
        SplitWorldAxis(everyone),
    )
    return Mesh(place=place, axes=axes, traffic=traffic, data_group=data_group, feature_group=feature_group)


def _group_of(groups: list[list[int]], timeout: timedelta | None) -> dist.ProcessGroup:
    """Create every subgroup (collective) and return the one containing this rank."""
    mine, _ = dist.new_subgroups_by_enumeration(groups, timeout=timeout)
    assert mine is not None
    return mine
