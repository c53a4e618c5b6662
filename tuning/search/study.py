"""Which point comes next: Optuna's answer, as a pure function of the axes and of what is known of earlier points.

The study is made anew for every question from the trials' records, told in the order in which they were asked, and its
sampler is seeded by how far the search has come. So nothing of it has to be kept: a sweep that goes on elsewhere, with
all files but its own lost, asks what it would have asked.

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
"""Points before the tree-structured estimator has anything to estimate, and the size of a generation of NSGA-II:
sweeps have tens of trials, of which Optuna's own 50 would all be drawn blindly."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A point that was asked before."""

    number: int
    """Its place in the search."""
    point: Point
    """The axes that decide its dictionary, and no others."""
    values: tuple[float, ...] | None = None
    """What is to be small; None while it trains, and for one that failed."""
    running: bool = False
    """Whether it trains: the sampler then looks elsewhere."""


def proposals(
    axes: Mapping[str, Values], known: Sequence[Known], *, sampler: Sampler, seed: int, num_values: int
) -> Iterator[Point]:
    """Points without end, the most promising first. While the next one is sought, those before count as running."""
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
    """A sampler's seed, another one for other parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def key_of(value: Any) -> str:
    """The same for equal values of an axis, and for equal points, only."""
    return json.dumps(value, sort_keys=True, default=str)


def fits(axes: Mapping[str, Values], point: Point) -> bool:
    """Whether a point has a value of each axis and nothing else."""
    return point.keys() == axes.keys() and all(_has(axes[axis], value) for axis, value in point.items())


def _has(values: Values, value: Any) -> bool:
    if isinstance(values, Range):
        whole_enough = isinstance(value, int) if values.whole else isinstance(value, int | float)
        return whole_enough and not isinstance(value, bool) and values.low <= value <= values.high
    return key_of(value) in map(key_of, values)


def _tell(study: Study, axes: Mapping[str, Values], distributions: Mapping[str, BaseDistribution], one: Known) -> None:
    """Let the study have asked this point, too."""
    from optuna.samplers import NSGAIISampler
    from optuna.trial import TrialState

    study.enqueue_trial({axis: _choice(axes[axis], value) for axis, value in one.point.items()})
    asked = study.ask({axis: distributions[axis] for axis in axes if axis in one.point})
    if isinstance(study.sampler, NSGAIISampler):  # it numbers the generations of its own proposals alone
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
    """A value as the distribution of its axis has it."""
    return value if isinstance(values, Range) else key_of(value)


def _value(values: Values, choice: Any) -> Any:
    if isinstance(values, Range):
        return values.rounded(choice)
    return next(value for value in values if key_of(value) == choice)
