"""Synthetic datasets (worlds) of known features: superposed, correlated, in a tree, and mixtures of concepts.

A world is a pure function of its name's options, the number of rows and two seeds: one of the features' directions, one
of the rows. Rows drawn with another row seed are unseen rows of the same world.

Shapes: N rows, G true features, D width of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class World:
    """Rows of a synthetic dataset and its true features."""

    rows_ND: Tensor
    """Rows, float32."""
    features_GD: Tensor
    """Unit vectors of the true features."""
    amplitudes_NG: Tensor
    """Amplitude of each feature in each row; zero where absent. Without noise, rows = amplitudes @ features (plus a
    constant in mixtures)."""
    parents: tuple[int, ...] = ()
    """Parent of each feature (G), -1 where it has none; empty in worlds without a tree."""
    levels: tuple[tuple[int, ...], ...] = ()
    """Groups of siblings in the tree: the features without a parent, then each parent's children."""

    @property
    def present_NG(self) -> Tensor:
        """Mask of the features present in each row, bool."""
        return self.amplitudes_NG != 0

    @property
    def l0(self) -> float:
        """Mean number of features in a row."""
        return float(self.present_NG.float().sum(1).mean())


class Draw(NamedTuple):
    """Random generators of features and rows."""

    features: torch.Generator
    rows: torch.Generator


FEATURE_SEED = 20_250_603
"""Seed of the directions of the study's features."""


def draw(*, seed: int, feature_seed: int) -> Draw:
    """Return generators of directions and rows. Neither shares a seed with a dictionary: both draw unit vectors alike,
    and a training could begin at its end."""
    return Draw(torch.Generator().manual_seed(feature_seed), torch.Generator().manual_seed(1_000_003 + seed))


# Independent and correlated features -------------------------------------------------------------------------------


def superposed(
    rows: int,
    *,
    seed: int,
    feature_seed: int = FEATURE_SEED,
    num_features: int = 96,
    width: int = 32,
    active: float = 4.0,
    noise: float = 0.02,
) -> World:
    """Return a dataset of independent features, more than dimensions, with amplitudes of 0.5 to 1.5."""
    make = draw(seed=seed, feature_seed=feature_seed)
    present = torch.rand(rows, num_features, generator=make.rows) < active / num_features
    return _summed(make, _directions(num_features, width, make.features), present, noise)


def correlated(
    rows: int,
    *,
    seed: int,
    feature_seed: int = FEATURE_SEED,
    num_groups: int = 12,
    group_size: int = 4,
    width: int = 32,
    groups_on: float = 1.2,
    together: float = 0.7,
    alone: float = 0.01,
    noise: float = 0.02,
) -> World:
    """Return a dataset of features that fire in groups: with chance `together` if their group is on, else `alone`."""
    make = draw(seed=seed, feature_seed=feature_seed)
    on = torch.rand(rows, num_groups, generator=make.rows) < groups_on / num_groups
    chance = torch.where(on.repeat_interleave(group_size, 1), together, alone)
    present = torch.rand(chance.shape, generator=make.rows) < chance
    return _summed(make, _directions(num_groups * group_size, width, make.features), present, noise)


def _directions(count: int, width: int, generator: torch.Generator) -> Tensor:
    return F.normalize(torch.randn(count, width, generator=generator), dim=1)


def _summed(make: Draw, features_GD: Tensor, present_NG: Tensor, noise: float) -> World:
    amplitudes_NG = (0.5 + torch.rand(present_NG.shape, generator=make.rows)) * present_NG
    rows_ND = amplitudes_NG @ features_GD
    rows_ND += noise * torch.randn(rows_ND.shape, generator=make.rows)
    return World(rows_ND=rows_ND, features_GD=features_GD, amplitudes_NG=amplitudes_NG)


# The tree ----------------------------------------------------------------------------------------------------------

NUM_PARENTS, CHILDREN_EACH, NUM_LEAVES = 3, 3, 8
PARENT_CHANCE, LEAF_CHANCE, CHILD_CHANCE = 0.2, 0.05, 0.2
TREE_L0 = 1 + NUM_PARENTS * PARENT_CHANCE * CHILDREN_EACH * CHILD_CHANCE
"""Mean L0 of the tree (1.36): one parent or leaf, and a child in six of ten rows with a parent."""


def tree(rows: int, *, seed: int, feature_seed: int = FEATURE_SEED, cosine: float = 0.0) -> World:
    """The tree of the MP-SAE paper's synthetic experiment (Costa et al., 2025, arXiv:2506.03093; their toy code).

    Twenty features in twenty dimensions. Each row has exactly one of three parents (chance 0.2 each) and eight leaves
    without children (0.05 each); a parent has at most one of its own three children (0.2 each). Amplitudes are
    N(1.5, 0.25), drawn for parent and child on their own. Features that stand side by side have `cosine` with each
    other; every other pair, a parent and its child among them, is orthogonal ("conditional orthogonality").
    """
    make = draw(seed=seed, feature_seed=feature_seed)
    parents, levels = _tree_shape()
    num_features = len(parents)
    basis_GD = torch.linalg.qr(torch.randn(num_features, num_features, generator=make.features))[0]
    features_GD = torch.empty(num_features, num_features)
    for level in levels:
        features_GD[list(level)] = with_cosine(len(level), cosine) @ basis_GD[list(level)]
    tops = torch.tensor(levels[0])
    chance = torch.tensor([PARENT_CHANCE if top in parents else LEAF_CHANCE for top in levels[0]])
    top_N = tops[torch.multinomial(chance, rows, replacement=True, generator=make.rows)]
    child_N = (torch.rand(rows, generator=make.rows) / CHILD_CHANCE).long()
    present = F.one_hot(top_N, num_features).bool()
    has_child_N = torch.isin(top_N, torch.tensor(parents)) & (child_N < CHILDREN_EACH)
    present[has_child_N, (top_N + 1 + child_N)[has_child_N]] = True
    amplitudes_NG = (1.5 + 0.25 * torch.randn(present.shape, generator=make.rows)) * present
    return World(
        rows_ND=amplitudes_NG @ features_GD,
        features_GD=features_GD,
        amplitudes_NG=amplitudes_NG,
        parents=parents,
        levels=levels,
    )


def _tree_shape() -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return parents by feature, and levels: a parent precedes its children, leaves are last."""
    parents: list[int] = []
    for _ in range(NUM_PARENTS):
        parents += [-1, *[len(parents)] * CHILDREN_EACH]
    parents += [-1] * NUM_LEAVES
    tops = tuple(i for i, parent in enumerate(parents) if parent < 0)
    children = [tuple(i for i, parent in enumerate(parents) if parent == top) for top in tops]
    return tuple(parents), (tops, *(group for group in children if group))


def with_cosine(count: int, cosine: float) -> Tensor:
    """The symmetric matrix (count, count) that turns orthonormal rows into unit rows of one cosine with each other.

    It is the root of (1 - cosine) I + cosine J. The paper mixes each row with the mean of the others and tabulates
    the shares for its cosines; both are the same matrix, since such a root is unique.
    """
    mean = torch.full((count, count), 1 / count)
    across, along = (1 - cosine) ** 0.5, (1 + (count - 1) * cosine) ** 0.5
    return across * (torch.eye(count) - mean) + along * mean


# Mixtures of concepts ----------------------------------------------------------------------------------------------


def mixtures(
    rows: int,
    *,
    seed: int,
    feature_seed: int = FEATURE_SEED,
    num_concepts: int = 32,
    width: int = 24,
    most: int = 4,
    spread: float = 0.3,
    offset: float = 1.0,
) -> World:
    """Rows that mix one to `most` concepts, as patches of a collage do, about a constant that all of them share.

    Stands in for the collages of objects with which the RA-SAE paper (Fel et al., 2025, arXiv:2502.12892) measures
    identifiability. A concept is a cluster: each time it appears it is its prototype plus a deviation of length about
    `spread`. The weights of a row's concepts are even on average and add up to one.
    """
    make = draw(seed=seed, feature_seed=feature_seed)
    features_GD = _directions(num_concepts, width, make.features)
    shared_D = offset * _directions(1, width, make.features)[0]
    count_N = torch.randint(1, most + 1, (rows,), generator=make.rows)
    order_NG = torch.rand(rows, num_concepts, generator=make.rows).argsort(1).argsort(1)
    present = order_NG < count_N[:, None]
    weights_NG = (0.5 + torch.rand(present.shape, generator=make.rows)) * present
    amplitudes_NG = weights_NG / weights_NG.sum(1, keepdim=True)
    # The weighted sum of independent deviations is one deviation, shorter by the length of the weights.
    deviation_ND = spread / width**0.5 * torch.randn(rows, width, generator=make.rows)
    rows_ND = amplitudes_NG @ features_GD + amplitudes_NG.norm(dim=1, keepdim=True) * deviation_ND + shared_D
    return World(rows_ND=rows_ND, features_GD=features_GD, amplitudes_NG=amplitudes_NG)


MakeWorld = Callable[..., World]

WORLDS: dict[str, tuple[MakeWorld, dict[str, float]]] = {
    "superposed": (superposed, {}),
    "correlated": (correlated, {}),
    "tree-0": (tree, {"cosine": 0.0}),
    "tree-0.3": (tree, {"cosine": 0.3}),
    "tree-0.5": (tree, {"cosine": 0.5}),
    "tree-0.7": (tree, {"cosine": 0.7}),
    "mixtures": (mixtures, {}),
}
"""Datasets and their options by name on the command line."""


def make_world(name: str, rows: int, *, seed: int, feature_seed: int = FEATURE_SEED) -> World:
    """Generate the dataset of that name with this many rows."""
    make, options = WORLDS[name]
    return make(rows, seed=seed, feature_seed=feature_seed, **options)
