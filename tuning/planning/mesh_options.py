"""The meshes on which a trial may run: the one that its sweep file asks for, and others when nodes come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lexray.tuning.file.resources import ElasticBlock
from lexray.tuning.placement.allocator import MeshOption, MeshOptions
from lexray.tuning.planning.mesh_choice import is_allowed
from lexray.tuning.trials import Trial


def mesh_options_of(trial: Trial, elastic: ElasticBlock, has_room: Callable[[Trial], bool]) -> MeshOptions:
    """Return the mesh options of a trial whose mesh is chosen; `has_room` checks that workers fit the nodes' memory.

    Only the split of rows varies, not that of latents: results differ by rounding only.
    """
    asked = trial.config.mesh
    numbers = range(max(asked.data, elastic.max_data or 0), min(asked.data, elastic.min_data) - 1, -1)
    tried = [on_mesh(trial, data) for data in numbers]
    allowed = [t for t in tried if t.config.mesh == asked or (is_allowed(t.config, t.config.mesh) and has_room(t))]
    mesh_options = tuple(MeshOption(mesh=t.config.mesh, footprint=t.footprint) for t in allowed)
    return MeshOptions(
        all=mesh_options,
        preferred=[option.mesh for option in mesh_options].index(asked),
        shrink_after_s=elastic.shrink_after_s,
        grow_after_s=elastic.grow_after_s,
    )


def on_mesh(trial: Trial, data: int) -> Trial:
    """The trial with its rows split over so many workers."""
    mesh = replace(trial.config.mesh, data=data)
    footprint = replace(trial.footprint, workers=mesh.data * mesh.feature)
    return replace(trial, config=replace(trial.config, mesh=mesh), footprint=footprint)
