"""Mean and standard error of an arm's metric over seeds, and when two arms differ.

A metric has one value for each seed, or one for each pair of seeds (stability). Pairs share seeds, so their standard
error is that of the jackknife over seeds (Efron and Stein, 1981); for one value a seed that is the usual one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import mean, stdev
from typing import Literal, NamedTuple

from lexray.training.measures.documents import TIE_ERRORS

SMALLEST_DIFFERENCE = 0.005
"""Smaller differences say nothing, however small their standard errors."""

Order = Literal["above", "below", "tie"]


class Estimate(NamedTuple):
    """A mean over seeds."""

    mean: float
    error: float
    """Standard error of the mean; 0 for a known number, infinite where there are too few seeds for one."""


def estimate(metric: str, values: Sequence[float]) -> Estimate:
    """Return the mean of a metric's values and its standard error."""
    if metric.startswith("stability"):
        return Estimate(mean(values), _error_of_pairs(values))
    return Estimate(mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("inf"))


def _error_of_pairs(values: Sequence[float]) -> float:
    """Return the jackknife's standard error, given a value for each pair in the order of `combinations`."""
    seeds = round((1 + (1 + 8 * len(values)) ** 0.5) / 2)
    if seeds < 3:
        return float("inf")
    pairs = list(zip(combinations(range(seeds), 2), values, strict=True))
    without = [mean(value for pair, value in pairs if seed not in pair) for seed in range(seeds)]
    middle = mean(without)
    return float(((seeds - 1) / seeds * sum((one - middle) ** 2 for one in without)) ** 0.5)


def order(one: Estimate, other: Estimate) -> Order:
    """Return where `one` lies: a tie unless the means differ by two standard errors of their difference, and 0.005."""
    difference = one.mean - other.mean
    error = (one.error**2 + other.error**2) ** 0.5
    if not abs(difference) > max(TIE_ERRORS * error, SMALLEST_DIFFERENCE):
        return "tie"
    return "above" if difference > 0 else "below"
