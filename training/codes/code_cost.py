"""What a code says of its cost: operations, buffers and bytes on the wire, as functions of shapes.

Measured peaks hold the buffers within 15 % on a CPU (`tests/training/test_memory_plan.py`).
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT_BYTES, INDEX_BYTES = 4, 8
PAIR_BYTES = 28
"""Bytes of a chosen (row, latent) pair: its value and index, and what they were sorted by."""
OFFERED_BYTES = 32
"""Bytes of a pair that a slice offers for the choice over all latents."""


class StepShape(NamedTuple):
    """The shapes of a training step, as one rank sees them."""

    rows: int
    """Rows that the rank computes at once (B)."""
    batch_rows: int
    """Rows of the global batch."""
    latents: int
    """Latents of the rank's slice (F)."""
    input_width: int
    output_width: int
    """(O)"""
    slices: int
    """Ranks of the feature axis."""
    target_l0: float
    skewed: bool = False
    """Whether pre-activations lean to one side, so that all of them may be candidates."""

    @property
    def k(self) -> int:
        """Active latents of a row."""
        return int(self.target_l0)

    @property
    def entries(self) -> int:
        """Pre-activations (B x F)."""
        return self.rows * self.latents

    @property
    def output_bytes(self) -> int:
        """Bytes of one reconstruction (B x O)."""
        return FLOAT_BYTES * self.rows * self.output_width

    def offered(self, k: float, rows: int) -> float:
        """Bytes of what all slices offer for a choice of `k` latents a row."""
        return OFFERED_BYTES * self.slices * k * rows if self.slices > 1 else 0.0


class CodeCost(NamedTuple):
    """The cost of one training step of a code."""

    multiply_adds: int
    """Of forward and backward pass, encoder and decoder included."""
    matrices: float
    """Peak number of fp32 buffers of B x F."""
    chunked: bool = False
    """Whether rows are ranked a few at a time, by scores of their own (`ops.topk.row_chunks`)."""
    pair_bytes: float = 0.0
    """Bytes of chosen pairs, and of what slices offer each other."""
    outputs: int = 7
    """fp32 buffers of B x O: rows, targets, errors, reconstructions."""
    reduced_outputs: int = 1
    """Reconstructions that are added up over the slices at once."""
    atom_copies: int = 1
    """Buffers of the atoms' size (F x O) in the backward pass, where atoms are W_dec itself."""
    all_reduce: int = 0
    """Bytes that a rank gives to all-reduces of the feature axis, while no latent is dead."""
    all_gather: int = 0
    """The same of all-gathers."""


def dense_step(shape: StepShape) -> int:
    """Multiply-adds of dense products: encoder and decoder, each forward and twice backward (but for the rows)."""
    return shape.entries * (2 * shape.input_width + 3 * shape.output_width)


def sparse_step(shape: StepShape, pairs_per_row: float) -> int:
    """Multiply-adds where only chosen pairs carry gradient: one dense product, then 1 of D and 3 of O a pair."""
    pairs = shape.rows * pairs_per_row
    return int(shape.entries * shape.input_width + pairs * (shape.input_width + 3 * shape.output_width))
