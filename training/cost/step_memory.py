"""What a training step takes of memory besides what is held between steps, counted from the code of each family.

Matrices of B x F are the most of it in the forward pass. In the backward pass, where few rows meet many latents, it is
what has the size of parameters: their gradients, the atoms, and what these were made through. Tests hold the formulas
to measured peaks on a CPU, within 15 %.

Shapes: B rows that a rank computes at once, D input width, O output width, F latents on this rank, K active ones.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.ops import nmf, topk

FLOAT_BYTES = 4
MATRICES = {
    "topk": 1.0, "abs_topk": 1.0, "group_max": 1.0, "hierarchical_topk": 1.0, "mp": 1.0,
    "batch_topk": 2.0, "matryoshka_batch_topk": 2.0, "crosscoder_batch_topk": 2.0,
    "relu": 4.25, "relu_norm_weighted": 4.25, "crosscoder": 4.25, "relu_tanh": 5.25, "p_anneal": 6.25,
    "gated": 7.25, "gated_p_anneal": 9.25, "jumprelu": 6.25,
}  # fmt: skip
"""fp32 matrices of B x F at once, by how the code is made: in penalty families while most entries matter, as they do at
first; in BatchTopK where half of them are candidates, as in the first step."""
PAIR_BYTES, HIERARCHICAL_PAIR_BYTES = 28, 56
"""Bytes of a chosen pair: its value and index, and what they were sorted by."""
CHUNK_BYTES = 9
"""Bytes of an entry of the few rows that are looked at at once: score, factor, mask."""
OFFERED_BYTES = 32
"""Bytes of a pair that a slice offers for the choice over all latents."""


class Rows(NamedTuple):
    """The rows of a step, as one rank sees them."""

    at_once: int
    """Rows that the rank computes at once."""
    batch: int
    """Rows of the global batch."""


class Shapes(NamedTuple):
    """What a rank's slice of a dictionary is made of."""

    parameters: int
    """Numbers that are learned by gradient."""
    largest: int
    """Numbers of the largest parameter."""
    buffer_bytes: int
    latents: int
    input_width: int
    output_width: int

    @property
    def atoms(self) -> int:
        """Numbers of the atoms (F x O)."""
        return self.latents * self.output_width


def code_of(config: DictionaryConfig) -> str:
    """The architecture whose way to a code a dictionary has."""
    code: str = getattr(config, "code", config.architecture)
    return code


def forward_bytes(config: DictionaryConfig, shapes: Shapes, rows: Rows, feature: int = 1) -> int:
    """Peak of activations and of the atoms that they are computed with, on a feature axis of so many slices."""
    atoms = FLOAT_BYTES * shapes.atoms if atom_copies(config) > 2 else 0  # else the parameters themselves
    entries = rows.at_once * shapes.latents
    matrices = int(FLOAT_BYTES * _matrices(config) * entries)
    if "topk" in code_of(config) or code_of(config) == "group_max":
        matrices += CHUNK_BYTES * min(entries, topk.CHUNK_ENTRIES)
    return (
        atoms
        + matrices
        + _pair_bytes(config, shapes, rows, feature)
        + _row_matrices(config, shapes, feature) * rows.at_once
    )


def backward_bytes(config: DictionaryConfig, shapes: Shapes) -> int:
    """Peak of gradients, atoms and gradients of the atoms."""
    atoms = atom_copies(config) * shapes.atoms
    if "archetypal" not in config.architecture:
        return FLOAT_BYTES * (shapes.parameters + atoms)
    # The mixture's gradient comes when most else is gone; projecting it takes copies of it once more.
    encoder = shapes.latents * shapes.input_width
    return FLOAT_BYTES * max(encoder + atoms, shapes.parameters + shapes.atoms, 4 * shapes.largest)


def atom_copies(config: DictionaryConfig) -> int:
    """Matrices of the atoms' size that the backward pass holds at once, gradients of parameters not counted."""
    if "archetypal" in config.architecture:
        return 4 if getattr(config, "learn_scale", True) else 3
    if getattr(config, "unit_atoms", True):
        return 4
    return 1 if MATRICES[code_of(config)] <= 2 else 2


def _matrices(config: DictionaryConfig) -> float:
    """Matrices of B x F at once."""
    code = code_of(config)
    if "archetypal" in config.architecture and code == "batch_topk":
        return 3.0  # mixtures lean to one side: all entries may be candidates
    if code == "jumprelu":
        if getattr(config, "gradient", "") == "threshold_and_input":
            return 8.0
        if getattr(config, "l0_loss", "") == "tanh":
            return 5.25
    return MATRICES[code]


def _pair_bytes(config: DictionaryConfig, shapes: Shapes, rows: Rows, feature: int) -> int:
    """Of chosen (row, latent) pairs, those of AuxK with them, and of what slices offer each other."""
    code, k = code_of(config), config.target_l0
    chosen = k * (4 if getattr(config, "multi_topk", False) else 1)
    total = rows.at_once * chosen * (HIERARCHICAL_PAIR_BYTES if code == "hierarchical_topk" else PAIR_BYTES)
    if getattr(config, "aux_weight", 0):
        k_aux = min(getattr(config, "k_aux", None) or shapes.output_width // 2, shapes.latents)
        total += rows.at_once * k_aux * PAIR_BYTES
    if feature > 1 and "topk" in code:
        total += OFFERED_BYTES * feature * k * (rows.batch if "batch_topk" in code else rows.at_once)
    return math.ceil(total)


def _row_matrices(config: DictionaryConfig, shapes: Shapes, feature: int) -> int:
    """Bytes for each row of what is as wide as the sites: rows, targets, errors, reconstructions."""
    prefixes = len(getattr(config, "prefixes", ())) + getattr(config, "random_prefixes", 0)
    outputs = prefixes + (10 if code_of(config) == "mp" else 7)
    if feature > 1:
        outputs += 2 * max(1, prefixes)  # before and after they are added up
    return FLOAT_BYTES * (outputs * shapes.output_width + shapes.input_width)


def solver_bytes(config: DictionaryConfig, shapes: Shapes, rows: Rows, data: int) -> int:
    """Peak of a step of a dictionary that learns from sums over batches, split over so many ranks."""
    numbers = {"pca": _pca, "kmeans": _kmeans}.get(config.architecture, _factorisation)(config, shapes, rows.at_once)
    summed = {"pca": shapes.input_width**2, "kmeans": shapes.atoms}.get(config.architecture, shapes.latents**2)
    return FLOAT_BYTES * (numbers + (2 * summed if data > 1 else 0))  # the sum over ranks is another float64 matrix


def _pca(config: DictionaryConfig, shapes: Shapes, rows: int) -> int:
    """Rows in float64 twice; then the covariance and its decomposition, in float64."""
    rows_BD, square = rows * shapes.input_width, shapes.input_width**2
    return max(5 * rows_BD + 2 * square, rows_BD + 8 * square)


def _kmeans(config: DictionaryConfig, shapes: Shapes, rows: int) -> int:
    """Distances twice; or rows in float64 with what they are added up in."""
    rows_BD = rows * shapes.input_width
    return max(2 * rows * shapes.latents + rows_BD, 5 * rows_BD + 2 * shapes.atoms)


def _factorisation(config: DictionaryConfig, shapes: Shapes, rows: int) -> int:
    """Ranking of all latents; the fit of the active ones of a few rows; the solution for the atoms in float64."""
    square, entries, k = shapes.latents**2, rows * shapes.latents, config.target_l0
    split = getattr(config, "signed_input", "refuse") == "split"
    width = shapes.input_width * (2 if split else 1)
    few = min(rows, max(1, int(nmf.CHUNK_NUMBERS / (k * width))))
    ranking = 3 * square + 8 * entries
    fitting = 3 * square + 4 * entries + int(few * (k * width + 3 * k * k))
    solving = 3 * entries + (6 * square if config.architecture == "snmf" else 2 * square)
    return max(ranking, fitting, solving) + 2 * rows * width
