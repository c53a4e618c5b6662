"""Match the atoms of one dictionary with those of another. Shapes: F atoms, G of the other, O width of both."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lexray.training.dictionaries import make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.measures.coherence import COMPARE_FLOP, compared_atoms, cosine_blocks, unit_rows

HUNGARIAN_WIDTH = 4096
"""Maximum width for one-to-one matching, which takes seconds at most and grows with the cube of the width."""

FOUND_ABOVE = 0.7
"""An atom counts as found in another dictionary that has one at this |cos| or more."""


class Matching(NamedTuple):
    """Similarity of two dictionaries of one shape."""

    cosine: float
    """Mean |cos| of matched atoms, 0..1."""
    method: Literal["hungarian", "nearest"]


@torch.no_grad()
def match(atoms_FO: Tensor, other_FO: Tensor) -> Matching:
    """Return the mean |cos| of the atoms of two dictionaries of equal width.

    `hungarian`: under the optimal one-to-one matching. Above `HUNGARIAN_WIDTH`, `nearest`: of each atom with its
    nearest neighbour in the other dictionary, in both directions. One atom may match several, so this is an upper
    bound, comparable only with other `nearest` values.
    """
    if len(atoms_FO) <= HUNGARIAN_WIDTH:
        from scipy.optimize import linear_sum_assignment

        cos_FF = (unit_rows(atoms_FO) @ unit_rows(other_FO).T).abs().clamp_max(1).double().cpu().numpy()
        return Matching(float(cos_FF[linear_sum_assignment(cos_FF, maximize=True)].mean()), "hungarian")
    both = [nearest(atoms_FO, other_FO).mean(), nearest(other_FO, atoms_FO).mean()]
    return Matching(float(sum(both)) / 2, "nearest")


@torch.no_grad()
def nearest(atoms_FO: Tensor, other_GO: Tensor, *, max_flop: float | None = COMPARE_FLOP) -> Tensor:
    """Return |cos| of each atom with its nearest neighbour in the other dictionary, float64 (F).

    Costs 2 F G O operations; where that is above `max_flop`, only a random sample of the atoms is compared.
    """
    queries = compared_atoms(len(atoms_FO), 2 * other_GO.numel(), max_flop)
    blocks = cosine_blocks(unit_rows(atoms_FO[queries]), unit_rows(other_GO))
    return torch.cat([cos_QG.abs_().amax(1) for _, cos_QG in blocks]).double()


def random_match(width: int, dimensions: int) -> float:
    """Return `match` of two dictionaries of random directions: the chance level."""
    return match(random_atoms(width, dimensions, 0), random_atoms(width, dimensions, 1)).cosine


def random_found_share(width: int, other_width: int, dimensions: int) -> float:
    """Return `found_share` of random directions among random directions."""
    return found_share(random_atoms(width, dimensions, 0), random_atoms(other_width, dimensions, 1))


def found_share(atoms_FO: Tensor, other_GO: Tensor) -> float:
    """Return the share of the atoms that are found in the other dictionary."""
    return float((nearest(atoms_FO, other_GO) >= FOUND_ABOVE).double().mean())


def random_atoms(width: int, dimensions: int, seed: int) -> Tensor:
    """Draw directions uniformly (width, dimensions), as a baseline of unrelated dictionaries."""
    return unit_rows(torch.randn(width, dimensions, generator=torch.Generator().manual_seed(seed)))


def initial_atoms(dictionary: Dictionary, seed: int) -> Tensor | None:
    """Return the initial atoms of this dictionary's training; None where they depend on data."""
    made = type(dictionary)
    if not issubclass(made, LearnedDictionary) or made.prepare_atoms is not LearnedDictionary.prepare_atoms:
        return None
    began = make_dictionary(dictionary.config, dictionary.sites, seed=seed)
    assert isinstance(began, LearnedDictionary)
    return began.atoms_FD().detach()


@torch.no_grad()
def moved(atoms_FO: Tensor, initial_FO: Tensor) -> float:
    """Return the mean over atoms of 1 - |cos| with their initial value: 0 is unmoved, near 1 unrelated to it."""
    return float(1 - (unit_rows(atoms_FO) * unit_rows(initial_FO)).sum(1).abs().clamp_max(1).double().mean())
