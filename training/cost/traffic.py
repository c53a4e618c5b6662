"""What a step moves between the ranks of a mesh, as formulas: bytes that each rank gives to collectives.

On the feature axis activations move, whatever the width; on the data axis parameters do, whatever the batch:

    feature   4 B k of candidates, 4 B O of partial reconstructions
    data      ZeRO 0 an all-reduce of 4 N; ZeRO 1 and 2 that and an all-gather of 4 N / D;
              ZeRO 3 a reduce-scatter of 4 N and an all-gather of 4 N / D: each parameter is gathered once a step

A ring sends 2 (G - 1) / G bytes for each that G ranks all-reduce, (G - 1) / G for each of a reduce-scatter, and G - 1
for each that is given to an all-gather. Not in it: parameters that are put back onto a constraint after each step
(archetypal mixtures, `decoder_norm: constrained`), which ZeRO 1 to 3 gather for that.

Shapes: B rows that a rank computes at once, O output width, N parameters of a rank's slice, D ranks of a data axis.
"""

from __future__ import annotations

from typing import NamedTuple

from lexray.training.codes.code_cost import FLOAT_BYTES
from lexray.training.config import MeshConfig
from lexray.training.cost.step_memory import Rows, step_cost
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.shapes import Shapes


class Given(NamedTuple):
    """Bytes that a rank gives to collectives in a step."""

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0

    def sent(self, ranks: int) -> int:
        """Bytes that a rank sends for it, in rings of so many ranks."""
        others = ranks - 1
        return (2 * self.all_reduce + self.reduce_scatter) * others // ranks + self.all_gather * others


def over_rows(shapes: Shapes, mesh: MeshConfig) -> Given:
    """Gradients and weights, over the data axis."""
    if mesh.data == 1:
        return Given()
    whole, part = FLOAT_BYTES * shapes.parameters, FLOAT_BYTES * shapes.parameters // mesh.data
    if mesh.stage == 3:
        return Given(reduce_scatter=whole, all_gather=part)
    return Given(all_reduce=whole, all_gather=part if mesh.stage else 0)


def over_latents(config: DictionaryConfig, shapes: Shapes, rows: Rows) -> Given:
    """Activations, over the feature axis, while no latent is dead; without sums of a few numbers."""
    cost = step_cost(config, shapes, rows, feature=2)
    return Given(all_reduce=cost.all_reduce, all_gather=cost.all_gather)


def of_dead_latents(shapes: Shapes, rows: Rows, k_aux: int) -> Given:
    """What AuxK adds to `over_latents` when there are dead latents."""
    outputs = FLOAT_BYTES * rows.at_once * shapes.output_width
    return Given(all_reduce=outputs, all_gather=FLOAT_BYTES * k_aux * rows.at_once)
