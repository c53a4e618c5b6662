"""Metrics of how well a dictionary recovers known features. Pure functions of plain tensors.

Matched are features with latents, by `lexray.training.measures.matching`: an atom that points away from a feature has
not found it.

Shapes: G true features, F latents, D width, N rows, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lexray.training.measures.matching import Match, match


def matched_cosine(features_GD: Tensor, atoms_FD: Tensor) -> float:
    """Return the mean cosine of matched pairs; an unmatched feature counts 0."""
    return float(match(features_GD, atoms_FD).cosines_P.sum()) / len(features_GD)


def activation_f1(matched: Match, present_NG: Tensor, codes_NF: Tensor) -> Tensor:
    """For each matched pair (P): F1 of 'the latent is active' as a detector of 'the feature is present'."""
    present_NP = present_NG[:, matched.atoms_P]
    active_NP = codes_NF[:, matched.others_P] != 0
    hits_P = (present_NP & active_NP).sum(0).double()
    return 2 * hits_P / (present_NP.sum(0) + active_NP.sum(0)).clamp_min(1)


# Hierarchy ---------------------------------------------------------------------------------------------------------


class Hierarchy(NamedTuple):
    """Errors of the learned cosines between matched atoms, compared with a tree's true ones."""

    parent_child: float
    """Mean learned cosine of a parent's atom and its child's; the true value is 0, though they fire together."""
    across: float
    """Mean squared error of the cosines of parents with their own children ('hier')."""
    within: float
    """Mean squared error of the cosines of siblings ('flat')."""


def hierarchy(
    features_GD: Tensor, atoms_FD: Tensor, parents: Sequence[int], levels: Sequence[Sequence[int]]
) -> Hierarchy:
    """Compare the Gram matrix of the matched atoms with the truth. Needs at least as many latents as features."""
    found = match(features_GD, atoms_FD)
    assert len(found.others_P) == len(features_GD), "every feature needs a latent"
    atoms_GD = F.normalize(atoms_FD[found.others_P].double(), dim=1)
    truth_GD = F.normalize(features_GD.double(), dim=1)
    learned_GG, truth_GG = atoms_GD @ atoms_GD.T, truth_GD @ truth_GD.T
    across = [(parent, child) for child, parent in enumerate(parents) if parent >= 0]
    within = [pair for level in levels for pair in combinations(level, 2)]
    errors_GG = (learned_GG - truth_GG).square()
    return Hierarchy(_mean_at(learned_GG, across), _mean_at(errors_GG, across), _mean_at(errors_GG, within))


def _mean_at(matrix: Tensor, pairs: Sequence[tuple[int, int]]) -> float:
    first, second = zip(*pairs, strict=True)
    return float(matrix[list(first), list(second)].mean())


# Identifiability ---------------------------------------------------------------------------------------------------


class Identifiability(NamedTuple):
    """Accuracy of single latents as detectors of concepts in a row, mean over concepts."""

    accuracy: float
    """Accuracy of the best latent at its best threshold."""
    balanced: float
    """Balanced accuracy: rows with and without the concept weigh equally; 0.5 is chance."""


def identifiability(codes_NF: Tensor, present_NG: Tensor) -> Identifiability:
    """max over latents j and thresholds t of the accuracy of [code_j > t] as a detector of a concept.

    The form of Fel et al. (2025), arXiv:2502.12892. Concepts are rare in rows, so that plain accuracy is high for a
    latent that is never active: hence the balanced one.
    """
    num_with_G = present_NG.sum(0).double()
    num_without_G = len(present_NG) - num_with_G
    best_G = torch.zeros(present_NG.shape[1], dtype=torch.float64)
    balanced_G = best_G.clone()
    for values_N in codes_NF.T:
        order = values_N.argsort(descending=True)
        # The rows above a threshold are a prefix in this order; it may not end between equal values.
        ends = torch.cat([values_N[order].diff() < 0, torch.tensor([True])])
        hits_NG = present_NG[order].double().cumsum(0)[ends]
        above_N1 = (torch.arange(1, len(order) + 1, dtype=torch.float64)[ends])[:, None]
        rejected_NG = num_without_G - (above_N1 - hits_NG)
        accuracy_G = ((hits_NG + rejected_NG) / len(order)).amax(0)
        rates_NG = hits_NG / num_with_G.clamp_min(1) + rejected_NG / num_without_G.clamp_min(1)
        best_G = torch.maximum(best_G, accuracy_G)
        balanced_G = torch.maximum(balanced_G, rates_NG.amax(0) / 2)
    # Predicting "absent" always is a threshold above every value.
    best_G = torch.maximum(best_G, num_without_G / len(present_NG))
    return Identifiability(float(best_G.mean()), float(balanced_G.mean()))
