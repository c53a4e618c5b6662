"""Cost model of a code: operations, buffers and bytes of communication, as functions of shapes.

On a CPU the modelled buffers are within 15 % of measured peaks (`tests/training/test_memory_plan.py`).
"""

from __future__ import annotations

from typing import NamedTuple

FLOAT_BYTES, INDEX_BYTES = 4, 8
PAIR_BYTES = 28
"""Bytes of a chosen (row, latent) pair: its value, index and sort key."""
OFFERED_BYTES = 32
"""Bytes of a candidate pair that a slice contributes to the selection over all latents."""


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
    """Whether the distribution of pre-activations is skewed, so that all of them may be candidates."""

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
        """Return the bytes of all slices' candidates for a selection of `k` latents per row."""
        return OFFERED_BYTES * self.slices * k * rows if self.slices > 1 else 0.0


class CodeCost(NamedTuple):
    """The cost of one training step of a code."""

    multiply_adds: int
    """Multiply-adds of the forward and backward pass, including encoder and decoder."""
    matrices: float
    """Peak number of fp32 buffers of B x F."""
    chunked: bool = False
    """Whether rows are ranked in chunks, by separate scores (`ops.topk.row_chunks`)."""
    pair_bytes: float = 0.0
    """Bytes of chosen pairs, and of candidates exchanged between slices."""
    outputs: int = 7
    """fp32 buffers of B x O: rows, targets, errors, reconstructions."""
    reduced_outputs: int = 1
    """Number of reconstructions that are all-reduced over the slices at once."""
    atom_copies: int = 1
    """Buffers of the atoms' size (F x O) in the backward pass, where atoms are W_dec itself."""
    all_reduce: int = 0
    """Bytes that a rank contributes to all-reduces of the feature axis, while no latent is dead."""
    all_gather: int = 0
    """The same for all-gathers."""


def dense_step(shape: StepShape) -> int:
    """Return the multiply-adds of dense products: encoder and decoder, forward, and backward to weights and code."""
    return shape.entries * (2 * shape.input_width + 3 * shape.output_width)


def sparse_step(shape: StepShape, pairs_per_row: float) -> int:
    """Return the multiply-adds where only chosen pairs carry gradient: one dense product, then D + 3 O per pair."""
    pairs = shape.rows * pairs_per_row
    return int(shape.entries * shape.input_width + pairs * (shape.input_width + 3 * shape.output_width))
