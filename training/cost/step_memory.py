"""Memory model of a training step beyond what is held between steps, from the costs of codes and dictionaries.

Matrices of B x F dominate the forward pass. With few rows and many latents, tensors of the size of parameters dominate
the backward pass: gradients, atoms, and the intermediates of computing atoms. Tests hold the formulas within 15 % of
measured peaks on a CPU.

Shapes: B rows that a rank computes at once, D input width, O output width, F latents on this rank.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lexray.training.codes.code_cost import FLOAT_BYTES, CodeCost, StepShape
from lexray.training.dictionaries import architecture
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.learned import LearnedConfig, LearnedDictionary
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.dictionaries.solved import Solved
from lexray.training.ops import topk

CHUNK_BYTES = 9
"""Bytes per entry of a chunk of rows that is ranked at once: score, factor, mask."""


class Rows(NamedTuple):
    """The rows of a step, as one rank sees them."""

    at_once: int
    """Rows that the rank computes at once."""
    batch: int
    """Rows of the global batch."""


def step_shape(config: DictionaryConfig, shapes: Shapes, rows: Rows, feature: int = 1) -> StepShape:
    """Return the shapes of a step on a feature axis of `feature` slices."""
    return StepShape(
        rows=rows.at_once,
        batch_rows=rows.batch,
        latents=shapes.latents,
        input_width=shapes.input_width,
        output_width=shapes.output_width,
        slices=feature,
        target_l0=config.target_l0,
    )


def learned_by(config: DictionaryConfig) -> tuple[type[LearnedDictionary], LearnedConfig]:
    """Return the class and the configuration of a dictionary that learns by gradient."""
    made = architecture(config.architecture).dictionary
    assert issubclass(made, LearnedDictionary)
    assert isinstance(config, LearnedConfig)
    return made, config


def step_cost(config: DictionaryConfig, shapes: Shapes, rows: Rows, feature: int = 1) -> CodeCost:
    """Return the code's cost of a step."""
    made, learned = learned_by(config)
    return made.step_cost(learned, step_shape(config, shapes, rows, feature))


def forward_bytes(config: DictionaryConfig, shapes: Shapes, rows: Rows, feature: int = 1) -> int:
    """Return the peak bytes of activations and atoms."""
    (made, learned), cost = learned_by(config), step_cost(config, shapes, rows, feature)
    entries = rows.at_once * shapes.latents
    # Two copies or fewer: the atoms are the parameters themselves.
    atoms = FLOAT_BYTES * shapes.atoms if made.atom_copies(learned, cost) > 2 else 0
    matrices = int(FLOAT_BYTES * cost.matrices * entries)
    chunks = CHUNK_BYTES * min(entries, topk.CHUNK_ENTRIES) if cost.chunked else 0
    outputs = cost.outputs + (2 * cost.reduced_outputs if feature > 1 else 0)  # before and after the all-reduce
    rows_bytes = FLOAT_BYTES * (outputs * shapes.output_width + shapes.input_width) * rows.at_once
    return atoms + matrices + chunks + math.ceil(cost.pair_bytes) + rows_bytes


def backward_bytes(config: DictionaryConfig, shapes: Shapes) -> int:
    """Return the peak bytes of gradients, atoms and gradients of the atoms."""
    made, learned = learned_by(config)
    copies = made.atom_copies(learned, step_cost(config, shapes, Rows(1, 1)))
    return FLOAT_BYTES * made.backward_numbers(learned, shapes, copies)


def solver_bytes(config: DictionaryConfig, shapes: Shapes, rows: Rows, data: int) -> int:
    """Return the peak bytes of a step of a dictionary that learns by statistics, on a data axis of `data` ranks."""
    made = architecture(config.architecture).dictionary
    assert issubclass(made, Solved)
    summed = 2 * made.summed_numbers(config, shapes) if data > 1 else 0  # the sum over ranks is another float64 matrix
    return FLOAT_BYTES * (made.step_numbers(config, shapes, rows.at_once) + summed)
