"""Which point a study proposes next, on a frontier that is known: no sweep, no Ray, everything seeded."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.tuning.file.axes import Point, Range, Values
from lexray.tuning.file.points import key
from lexray.tuning.file.search import draws
from lexray.tuning.results.frontier import non_dominated
from lexray.tuning.search.study import FIRST_AT_RANDOM, Known, Sampler, fits, proposals, seed_of

AXES: dict[str, Values] = {
    "architecture": ["topk", "relu", "gated"],
    "target_l0": Range(low=4, high=64, scale="log", whole=True),
    "lr": Range(low=1e-5, high=1e-1, scale="log"),
    "k_aux": Range(low=0, high=1),
}
SAMPLERS = get_args(Sampler)


def misfit(point: Point) -> float:
    """How far a point is from the best one of its sparsity."""
    of_architecture = {"topk": 0.0, "relu": 0.15, "gated": 0.4}[point["architecture"]]
    return of_architecture + 0.15 * (math.log10(point["lr"]) + 3) ** 2 + (point["k_aux"] - 0.3) ** 2


def measured(point: Point) -> tuple[float, float]:
    """L0 and FVU. The frontier: topk at a learning rate of 1e-3, FVU 8 / (8 + L0)."""
    return float(point["target_l0"]), 8 / (8 + point["target_l0"]) + misfit(point)


def searched(num_points: int, sampler: Sampler, seed: int) -> list[Point]:
    """Points asked one after another, each measured before the next is asked."""
    known: list[Known] = []
    for number in range(num_points):
        asked = proposals(AXES, known, sampler=sampler, seed=seed_of(seed, number), num_values=2)
        point = next(asked)
        known.append(Known(number=number, point=point, values=measured(point)))
    return [one.point for one in known]


def dominated_area(points: list[Point]) -> float:
    """Of L0 (log) x FVU up to 64 and 1.5, the part that some point beats."""
    values = np.array([measured(point) for point in points])
    front = values[non_dominated(values[:, 0], values[:, 1]) & (values[:, 1] < 1.5)]
    front = front[np.argsort(front[:, 0])]
    edges = np.log([*front[:, 0], 64.0])
    return float((np.diff(edges) * (1.5 - front[:, 1])).sum())


@pytest.mark.parametrize("seed", range(3))
def test_thirty_points_of_the_estimator_come_nearer_to_the_frontier_than_as_many_random_ones(seed):
    random_ones = list(islice(draws(AXES, seed), 30))
    assert dominated_area(searched(30, "tpe", seed)) > dominated_area(random_ones)


@pytest.mark.parametrize(("sampler", "num_points"), [("tpe", 30), ("nsga2", 60)])
def test_later_points_fit_better_than_the_first_ones(sampler, num_points):
    points = [searched(num_points, sampler, seed) for seed in range(2)]
    first = np.mean([misfit(point) for each in points for point in each[:FIRST_AT_RANDOM]])
    last = np.mean([misfit(point) for each in points for point in each[-FIRST_AT_RANDOM:]])
    assert last < 0.6 * first


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_is_asked_depends_on_what_is_known_and_not_on_its_order_in_memory(sampler):
    points = searched(15, sampler, seed=0)
    known = [Known(number=n, point=p, values=measured(p)) for n, p in enumerate(points)]
    first, second = (
        list(islice(proposals(AXES, told, sampler=sampler, seed=7, num_values=2), 3)) for told in (known, known[::-1])
    )
    assert first == second
    assert first != list(islice(proposals(AXES, known, sampler=sampler, seed=8, num_values=2), 3))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_points_without_some_axes_failed_ones_and_running_ones_can_be_told(sampler):
    full = searched(14, sampler, seed=1)
    known = [
        Known(number=0, point=full[0]),
        Known(number=1, point=full[1], running=True),
        *(
            Known(number=n, point={axis: v for axis, v in p.items() if axis != "k_aux" or n % 2}, values=measured(p))
            for n, p in enumerate(full[2:], start=2)
        ),
    ]
    assert all(fits(AXES, point) for point in islice(proposals(AXES, known, sampler=sampler, seed=0, num_values=2), 5))


def test_what_runs_is_not_proposed_again_while_there_is_something_else():
    axes: dict[str, Values] = {"architecture": ["topk", "relu"], "target_l0": [2, 4, 8]}
    known = [
        Known(number=n, point={"architecture": "topk", "target_l0": 2}, values=(2.0, 0.1))
        for n in range(FIRST_AT_RANDOM)
    ]
    asked = islice(proposals(axes, known, sampler="tpe", seed=0, num_values=2), 30)
    assert len({key(point) for point in asked}) == 6


numbers = st.floats(1e-6, 1e6)


@given(numbers, st.floats(1.01, 1e3), st.sampled_from(["linear", "log"]), st.booleans(), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_proposed_numbers_lie_in_their_range(low: float, factor: float, scale: Any, whole: bool, seed: int) -> None:
    low, high = (math.ceil(low), math.ceil(low) + math.ceil(factor)) if whole else (low, low * factor)
    axes = {"lr": Range(low=low, high=high, scale=scale, whole=whole)}
    for point in islice(proposals(axes, [], sampler="tpe", seed=seed, num_values=2), 3):
        assert fits(axes, point)
        told = Known(number=0, point=point, values=(1.0, 1.0))
        assert fits(axes, next(proposals(axes, [told], sampler="tpe", seed=seed, num_values=2)))


@pytest.mark.parametrize(
    ("axis", "values", "inside", "outside"),
    [
        ("width", [64, 128], 64, 65),
        ("width", Range(low=64, high=128, whole=True), 100, 100.5),
        ("lr", Range(low=0.1, high=1.0), 0.1, 1.5),
        ("lr", Range(low=0.1, high=1.0), 1, True),
        ("lr", Range(low=0.1, high=1.0), 0.5, "0.5"),
        ("sites", [["a", "b"], ["a", "c"]], ["a", "c"], ["b", "c"]),
        ("site", [{"input": "a", "output": "b"}], {"output": "b", "input": "a"}, "a"),
    ],
)
def test_a_point_fits_axes_that_have_its_values_and_no_others(axis, values, inside, outside):
    axes = {axis: values, "seed": [0]}
    assert fits(axes, {axis: inside, "seed": 0})
    assert not fits(axes, {axis: outside, "seed": 0})
    assert not fits(axes, {axis: inside})
    assert not fits(axes, {axis: inside, "seed": 0, "k_aux": 1})
