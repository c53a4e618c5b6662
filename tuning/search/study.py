"""Proposes the next point by Optuna, as a pure function of the axes and the earlier points.

The study is rebuilt for every proposal from the trials' records in the order of their proposal, and its sampler is
seeded by the number of the proposal. So no state has to be kept: a sweep that resumes elsewhere, with only its own
files left, proposes the same points.

Numbers of an axis that lists its values are categories, as are lists of sites; ranges are floats or whole numbers, on
their own scale.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lexray.tuning.file.axes import Point, Range, Values

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

Sampler = Literal["tpe", "nsga2"]
FIRST_AT_RANDOM = 10
"""Random points before the tree-structured estimator starts, and the population size of NSGA-II: sweeps have tens of
trials, all of which would be random under Optuna's own 50."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A point that was proposed before."""

    number: int
    """Index in the search."""
    point: Point
    """Values of the axes that determine its dictionary, and no others."""
    values: tuple[float, ...] | None = None
    """Values to minimize; None while it trains, and if it failed."""
    running: bool = False
    """Whether it is training: the sampler then avoids its neighbourhood."""


def proposals(
    axes: Mapping[str, Values], known: Sequence[Known], *, sampler: Sampler, seed: int, num_values: int
) -> Iterator[Point]:
    """Yield points without end, most promising first; earlier ones of the same call count as running."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"] * num_values, sampler=_sampler(sampler, seed))
    distributions = {axis: _distribution(values) for axis, values in axes.items()}
    for before in sorted(known, key=lambda one: (one.number, key_of(one.point))):
        _tell(study, axes, distributions, before)
    while True:
        asked = study.ask(distributions).params
        yield {axis: _value(axes[axis], asked[axis]) for axis in axes}


def seed_of(*parts: int | str) -> int:
    """Derive a sampler's seed from the parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def key_of(value: Any) -> str:
    """Return a key that is equal exactly for equal values or points."""
    return json.dumps(value, sort_keys=True, default=str)


def fits(axes: Mapping[str, Values], point: Point) -> bool:
    """Return whether a point has a value of each axis and nothing else."""
    return point.keys() == axes.keys() and all(_has(axes[axis], value) for axis, value in point.items())


def _has(values: Values, value: Any) -> bool:
    if isinstance(values, Range):
        whole_enough = isinstance(value, int) if values.whole else isinstance(value, int | float)
        return whole_enough and not isinstance(value, bool) and values.low <= value <= values.high
    return key_of(value) in map(key_of, values)


def _tell(study: Study, axes: Mapping[str, Values], distributions: Mapping[str, BaseDistribution], one: Known) -> None:
    """Add a known point to the study."""
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState

    study.enqueue_trial({axis: _choice(axes[axis], value) for axis, value in one.point.items()})
    asked = study.ask({axis: distributions[axis] for axis in axes if axis in one.point})
    if isinstance(study.sampler, NSGAIISampler):  # it assigns generations to its own proposals only
        study.sampler.get_trial_generation(study, study.get_trials(deepcopy=False)[asked.number])
    if one.values is not None:
        study.tell(asked, one.values)
    elif not one.running:
        study.tell(asked, state=TrialState.FAIL)


def _sampler(name: Sampler, seed: int) -> BaseSampler:
    from optuna.samplers import NSGAIISampler, TPESampler

    if name == "nsga2":
        return NSGAIISampler(population_size=FIRST_AT_RANDOM, seed=seed)
    return TPESampler(n_startup_trials=FIRST_AT_RANDOM, multivariate=False, constant_liar=True, seed=seed)


def _distribution(values: Values) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Range):
        return CategoricalDistribution(list(dict.fromkeys(map(key_of, values))))
    is_log = values.scale == "log"
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=is_log)
    return FloatDistribution(values.low, values.high, log=is_log)


def _choice(values: Values, value: Any) -> Any:
    """Convert a value to the representation in its axis's distribution."""
    return value if isinstance(values, Range) else key_of(value)


def _value(values: Values, choice: Any) -> Any:
    if isinstance(values, Range):
        return values.rounded(choice)
    return next(value for value in values if key_of(value) == choice)
