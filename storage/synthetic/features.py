"""The features of a generated dataset: directions, firing probabilities, trees, correlation and magnitudes.

How a row comes about (arXiv:2602.14687, section 3; `rows` computes it):

    z = C e + sqrt(1 - |C_g|^2) n     e ~ N(0, I_R), n ~ N(0, I_G): correlated normal numbers of unit variance
    feature g fires where z_g > t_g,  t_g = quantile of N(0, 1) at 1 - q_g
    a_g = max(0, m_g + s_g N(0, 1))   magnitude where it fires
    then level by level of the trees: a child fires only where its parent does, and one of the children that still do,
    drawn uniformly, is kept
    x = bias + sum_g a_g d_g

Probabilities are Zipf's, p_g = p_min + (p_max - p_min) (r_g - r_last) / (1 - r_last) with r_g = (g + 1)^-exponent. A
child is drawn with q_g = p_g / p_parent (1 + sum over siblings of p / p_parent), at most 1, which makes up for the rows
in which its parent does not fire or a sibling is kept. Where that is above 1 a child fires less often than p_g.

Given e, a feature fires with probability Phi((C_g . e - t_g) / s'_g). That argument in units of 1 / BINS, plus OFFSET,
is [e, 1] . argument_KG, an exact sum (see `exact`), and `firing_threshold` maps it to 32 bits that a word is below with
this probability.

Shapes: G features, D width, R rank of the correlation, K = R + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import xxhash

from lexray.storage.synthetic.exact import STANDARD, Words, rounded
from lexray.storage.synthetic_url import Parameters, Synthetic

DIRECTION_STEP = 2.0**-13
MAGNITUDE_STEP = 2.0**-6
"""Rows are multiples of the product of these, 2^-19: exact in float32 up to 32, many times any coordinate."""
FACTOR_STEP = 2.0**-6
"""Step of the common factors e."""
ARGUMENT_STEP = 2.0**-2
BINS, OFFSET = 512, 4096
"""Arguments of Phi are cut into bins of 1/512 from -8 to 8."""
MAX_ARGUMENT = 5.0
MIN_OWN_VARIANCE = 0.01
"""Least share of a feature's variance that is its own; a larger factor C is scaled down."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """The features; all arrays are read-only."""

    parameters: Parameters
    directions_GD: np.ndarray
    """Unit directions but for rounding to DIRECTION_STEP, float32."""
    probabilities_G: np.ndarray
    """p, float64: firing probabilities, of which trees take some away."""
    drawn_G: np.ndarray
    """q, float64: probability of being drawn where the parent fires."""
    argument_KG: np.ndarray
    """Coefficients of the argument of Phi, float32."""
    first_child_G: np.ndarray
    """Number of the first child, -1 without children."""
    parents_G: np.ndarray
    """Number of the parent, -1 without."""
    means_G: np.ndarray
    spreads_G: np.ndarray
    """Mean and standard deviation of the magnitudes, float64."""
    bias_D: np.ndarray

    @property
    def digest(self) -> str:
        """xxh3-64 of everything that rows are computed from."""
        parts = (self.directions_GD, self.argument_KG, self.means_G, self.spreads_G, self.bias_D, self.first_child_G)
        state = xxhash.xxh3_64()
        for part in parts:
            state.update(np.ascontiguousarray(part).view(np.uint8).data)
        return str(state.hexdigest())


@lru_cache(maxsize=2)
def features_of(parameters: Parameters) -> Features:
    """Return the features, made on first use in a process: 16,384 of them take seconds."""
    probabilities_G = zipf(parameters)
    first_child_G, parents_G = trees(parameters)
    drawn_G = drawn(parameters, probabilities_G, parents_G)
    numbers = np.linspace(parameters.first_magnitude, parameters.last_magnitude, parameters.features)
    spread_G = _words(parameters, "spreads").normal(parameters.features)
    bias_D = _words(parameters, "bias").normal(parameters.width)
    found = Features(
        parameters=parameters,
        directions_GD=directions(parameters),
        probabilities_G=probabilities_G,
        drawn_G=drawn_G,
        argument_KG=arguments(parameters, drawn_G),
        first_child_G=first_child_G,
        parents_G=parents_G,
        means_G=numbers,
        spreads_G=np.abs(parameters.spread_mean + parameters.spread_std * spread_G),
        bias_D=rounded(bias_D * (parameters.bias_norm / np.linalg.norm(bias_D)), DIRECTION_STEP).astype(np.float32),
    )
    for array in vars(found).values():
        if isinstance(array, np.ndarray):
            array.flags.writeable = False
    return found


def zipf(parameters: Parameters) -> np.ndarray:
    """Return the firing probabilities p (G), falling."""
    rank_G = np.arange(1, parameters.features + 1, dtype=np.float64) ** -parameters.zipf_exponent
    share_G = (rank_G - rank_G[-1]) / (1 - rank_G[-1])
    return parameters.min_probability + (parameters.max_probability - parameters.min_probability) * share_G


def trees(parameters: Parameters) -> tuple[np.ndarray, np.ndarray]:
    """Return each feature's first child and parent (G), -1 without: level by level, children of one parent together."""
    first_child_G = np.full(parameters.features, -1, dtype=np.int64)
    parents_G = np.full(parameters.features, -1, dtype=np.int64)
    begin = 0
    for size in parameters.level_sizes[:-1]:
        level = np.arange(begin, begin + size)
        first_child_G[level] = begin + size + parameters.branching * np.arange(size)
        parents_G[begin + size : begin + size * (1 + parameters.branching)] = level.repeat(parameters.branching)
        begin += size
    return first_child_G, parents_G


def drawn(parameters: Parameters, probabilities_G: np.ndarray, parents_G: np.ndarray) -> np.ndarray:
    """Return q (G): p, made larger for children by what the trees take away, and at most 1."""
    children = np.flatnonzero(parents_G >= 0)
    own, parent = probabilities_G[children], probabilities_G[parents_G[children]]
    siblings = own.reshape(-1, parameters.branching).sum(1).repeat(parameters.branching) - own
    found = probabilities_G.copy()
    found[children] = np.minimum(1.0, own / parent * (1 + siblings / parent))
    return found


def arguments(parameters: Parameters, drawn_G: np.ndarray) -> np.ndarray:
    """Return the coefficients (K, G) of the argument of Phi in bins, the last row being its constant."""
    factor_GR = parameters.correlation_scale * _words(parameters, "correlation").normal(
        parameters.features, parameters.correlation_rank
    )
    largest = float((factor_GR**2).sum(1).max())
    factor_GR *= math.sqrt(min(1.0, (1 - MIN_OWN_VARIANCE) / largest))
    own_G = np.sqrt(1 - (factor_GR**2).sum(1))
    threshold_G = np.array([STANDARD.inv_cdf(1 - q) if q < 1 else -math.inf for q in drawn_G])
    constant_G = np.clip(-threshold_G / own_G, -MAX_ARGUMENT, MAX_ARGUMENT) * BINS + OFFSET
    table_GK = np.concatenate([factor_GR / own_G[:, None] * BINS, constant_G[:, None]], axis=1)
    return np.ascontiguousarray(rounded(table_GK, ARGUMENT_STEP).T, dtype=np.float32)


def directions(parameters: Parameters) -> np.ndarray:
    """Return the directions (G, D), float32, rounded to DIRECTION_STEP."""
    drawn_GD = _words(parameters, "directions").normal(parameters.features, parameters.width)
    return rounded(tight_frame(drawn_GD), DIRECTION_STEP).astype(np.float32)


def tight_frame(vectors_GD: np.ndarray) -> np.ndarray:
    """Return unit vectors near the given ones whose sum of squared cosines is near its least value, G^2 / D.

    The nearest vectors with equal second moments along every axis, X (X^T X D / G)^(-1/2), brought to length 1.
    """
    values, basis_DD = np.linalg.eigh(vectors_GD.T @ vectors_GD)
    whitened_GD = vectors_GD @ ((basis_DD / np.sqrt(values)) @ basis_DD.T)
    return whitened_GD / np.linalg.norm(whitened_GD, axis=1, keepdims=True)


@cache
def firing_threshold() -> np.ndarray:
    """Return 2^32 Phi at the middle of each bin, uint32."""
    middles = (np.arange(2 * OFFSET) + 0.5 - OFFSET) / BINS
    shares = np.array([STANDARD.cdf(middle) for middle in middles])
    table = np.minimum(np.rint(shares * 2.0**32), 2.0**32 - 1).astype(np.uint32)
    table.flags.writeable = False
    return table


def _words(parameters: Parameters, purpose: str) -> Words:
    return Words(Synthetic(name="", rows=1, parameters=parameters).entropy(purpose, of_rows=False))
