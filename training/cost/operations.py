"""Floating-point operations of a training, as codes count the products of a step."""

from __future__ import annotations

from lexray.training.config import TrainingConfig
from lexray.training.cost.memory import rows_at_once, shapes_of
from lexray.training.cost.step_memory import Rows, step_cost
from lexray.training.dictionaries.normalisers import Sites


def training_flop(config: TrainingConfig, sites: Sites) -> int | None:
    """Return the operations of all steps on all ranks, two for a multiply-add; None where atoms are solved for."""
    mesh, dictionary = config.mesh, config.dictionary
    if dictionary.learns_by == "statistics":
        return None
    shapes = shapes_of(dictionary, sites, mesh.feature)
    part = step_cost(dictionary, shapes, Rows(rows_at_once(config), config.data.batch_rows), mesh.feature)
    per_row = part.multiply_adds / rows_at_once(config)
    return round(2 * per_row * config.data.batch_rows * mesh.feature * config.num_steps)
