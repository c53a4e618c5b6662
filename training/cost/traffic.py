"""Communication model of a step: bytes that each rank contributes to collectives, as formulas.

On the feature axis activations move, whatever the width; on the data axis parameters do, whatever the batch:

    feature   4 B k of candidates, 4 B O of partial reconstructions
    data      ZeRO 0 an all-reduce of 4 N; ZeRO 1 and 2 that and an all-gather of 4 N / D;
              ZeRO 3 a reduce-scatter of 4 N and an all-gather of 4 N / D: each parameter is gathered once a step

A ring of G ranks sends 2 (G - 1) / G bytes per byte of an all-reduce, (G - 1) / G per byte of a reduce-scatter, and
G - 1 per byte contributed to an all-gather. Not included: the gathers of ZeRO 1 to 3 for parameters that are projected
onto a constraint after each step (archetypal mixtures, `decoder_norm: constrained`).

Shapes: B rows that a rank computes at once, O output width, N parameters of a rank's slice, D ranks of a data axis.
"""

from __future__ import annotations

from typing import NamedTuple

from lexray.training.codes.code_cost import FLOAT_BYTES
from lexray.training.cost.step_memory import Rows, step_cost
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.shapes import Shapes
from lexray.training.mesh.settings import MeshConfig


class Given(NamedTuple):
    """Bytes that a rank contributes to collectives in a step."""

    all_reduce: int = 0
    reduce_scatter: int = 0
    all_gather: int = 0

    def sent(self, ranks: int) -> int:
        """Return the bytes that a rank sends, in rings of `ranks` ranks."""
        others = ranks - 1
        return (2 * self.all_reduce + self.reduce_scatter) * others // ranks + self.all_gather * others


def over_rows(shapes: Shapes, mesh: MeshConfig) -> Given:
    """Return the traffic of gradients and weights over the data axis."""
    if mesh.data == 1:
        return Given()
    whole, part = FLOAT_BYTES * shapes.parameters, FLOAT_BYTES * shapes.parameters // mesh.data
    if mesh.stage == 3:
        return Given(reduce_scatter=whole, all_gather=part)
    return Given(all_reduce=whole, all_gather=part if mesh.stage else 0)


def over_latents(config: DictionaryConfig, shapes: Shapes, rows: Rows) -> Given:
    """Return the traffic of activations over the feature axis while no latent is dead; scalar sums are neglected."""
    cost = step_cost(config, shapes, rows, feature=2)
    return Given(all_reduce=cost.all_reduce, all_gather=cost.all_gather)
