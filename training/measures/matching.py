"""Match the atoms of one dictionary with those of another, or with known features.

One definition for sweeps and for the study of known features. Cosines are signed: a dictionary and its negative are not
the same. Only where codes have signs, so that an atom and its negative span the same reconstructions, the absolute
values count. Lengths of atoms never do.

Shapes: F atoms, G of the other, O width of both, P matched pairs.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lexray.training.dictionaries import make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.measures.coherence import COMPARE_FLOP, compared_atoms, cosine_blocks, unit_rows

HUNGARIAN_WIDTH = 4096
"""Maximum width for one-to-one matching, which takes seconds at most and grows with the cube of the width."""

FOUND_ABOVE = 0.7
"""An atom counts as found in another dictionary that has one at this cosine or more."""


class Match(NamedTuple):
    """One-to-one assignment; min(F, G) pairs."""

    atoms_P: Tensor
    others_P: Tensor
    cosines_P: Tensor
    """Cosines of the pairs (absolute values for signed codes), float64."""


class PairStability(NamedTuple):
    """Similarity of two dictionaries."""

    cosine: float
    """Mean cosine of matched atoms, at most 1."""
    method: Literal["hungarian", "nearest"]


@torch.no_grad()
def match(atoms_FO: Tensor, other_GO: Tensor, *, signed_codes: bool = False) -> Match:
    """Return the one-to-one assignment with the largest sum of cosines (Hungarian algorithm)."""
    from scipy.optimize import linear_sum_assignment

    cos_FG = (unit_rows(atoms_FO) @ unit_rows(other_GO).T).clamp(-1, 1).double().cpu()
    cos_FG = cos_FG.abs() if signed_codes else cos_FG
    atoms_P, others_P = map(torch.from_numpy, linear_sum_assignment(cos_FG.numpy(), maximize=True))
    return Match(atoms_P, others_P, cos_FG[atoms_P, others_P])


def pair_stability(atoms_FO: Tensor, other_GO: Tensor, *, signed_codes: bool = False) -> PairStability:
    """Return the mean cosine of the atoms of two dictionaries, from -1 to 1.

    `hungarian`: under the one-to-one matching with the largest sum, 2 sum cos / (F + G): for equal sizes
    max over permutations of 1/F sum_i cos(atom_i, atom'_permuted(i)) (Fel et al., 2025, arXiv:2502.12892); of unequal
    sizes, what is left over counts 0. Above `HUNGARIAN_WIDTH`, `nearest`: of each atom with its nearest neighbour in
    the other dictionary, mean of both directions. One atom may match several, so this is an upper bound, comparable
    only with other `nearest` values. A dictionary without atoms has 0.
    """
    method: Literal["hungarian", "nearest"] = (
        "hungarian" if max(len(atoms_FO), len(other_GO)) <= HUNGARIAN_WIDTH else "nearest"
    )
    if not len(atoms_FO) or not len(other_GO):
        return PairStability(0.0, method)
    if method == "hungarian":
        total = float(match(atoms_FO, other_GO, signed_codes=signed_codes).cosines_P.sum())
        return PairStability(2 * total / (len(atoms_FO) + len(other_GO)), method)
    one, other = (nearest(*pair, signed_codes=signed_codes) for pair in ((atoms_FO, other_GO), (other_GO, atoms_FO)))
    return PairStability(float(one.mean() + other.mean()) / 2, method)


@torch.no_grad()
def nearest(
    atoms_FO: Tensor, other_GO: Tensor, *, signed_codes: bool = False, max_flop: float | None = COMPARE_FLOP
) -> Tensor:
    """Return the cosine of each atom with its nearest neighbour in the other dictionary, float64 (F).

    Costs 2 F G O operations; where that is above `max_flop`, only a random sample of the atoms is compared.
    """
    queries = compared_atoms(len(atoms_FO), 2 * other_GO.numel(), max_flop)
    blocks = cosine_blocks(unit_rows(atoms_FO[queries]), unit_rows(other_GO))
    return torch.cat([(cos_QG.abs_() if signed_codes else cos_QG).amax(1) for _, cos_QG in blocks]).double()


def random_stability(width: int, dimensions: int, *, signed_codes: bool = False) -> float:
    """Return `pair_stability` of two dictionaries of random directions: the chance level."""
    made = (random_atoms(width, dimensions, seed) for seed in (0, 1))
    return pair_stability(*made, signed_codes=signed_codes).cosine


def random_found_share(width: int, other_width: int, dimensions: int, *, signed_codes: bool = False) -> float:
    """Return `found_share` of random directions among random directions."""
    atoms_FO, other_GO = random_atoms(width, dimensions, 0), random_atoms(other_width, dimensions, 1)
    return found_share(atoms_FO, other_GO, signed_codes=signed_codes)


def found_share(atoms_FO: Tensor, other_GO: Tensor, *, signed_codes: bool = False) -> float:
    """Return the share of the atoms that are found in the other dictionary; 0 where one of them has no atoms."""
    if not len(atoms_FO) or not len(other_GO):
        return 0.0
    return float((nearest(atoms_FO, other_GO, signed_codes=signed_codes) >= FOUND_ABOVE).double().mean())


def random_atoms(width: int, dimensions: int, seed: int) -> Tensor:
    """Draw directions uniformly (width, dimensions), as a baseline of unrelated dictionaries."""
    return unit_rows(torch.randn(width, dimensions, generator=torch.Generator().manual_seed(seed)))


def drawn_atoms(dictionary: Dictionary, seed: int) -> Tensor:
    """Draw the atoms at step 0 of this dictionary's training again, for one whose start does not depend on data."""
    assert not dictionary.atoms_from_data
    began = make_dictionary(dictionary.config, dictionary.sites, seed=seed)
    atoms_FO: Tensor = began.atoms_FD()  # type: ignore[operator]
    return atoms_FO.detach()


@torch.no_grad()
def moved(atoms_FO: Tensor, initial_FO: Tensor, *, signed_codes: bool = False) -> float | None:
    """Return the mean over atoms of 1 - cosine with their initial value: 0 is unmoved, 1 unrelated, 2 turned round.

    None of no atoms.
    """
    cos_F = (unit_rows(atoms_FO) * unit_rows(initial_FO)).sum(1).clamp(-1, 1).double()
    return float(1 - (cos_F.abs() if signed_codes else cos_F).mean()) if len(cos_F) else None
