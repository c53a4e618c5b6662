"""Proposes the next point by Optuna, as a pure function of the axes and the earlier points.

The study is rebuilt for every proposal from the trials' records in the order of their proposal, and its sampler is
seeded by the number of the proposal. So no state has to be kept: a sweep that resumes elsewhere, with only its own
files left, proposes the same points.

A sweep's axes are split into subspaces, one for each choice of sites: FVUs are only comparable on the same sites. Each
subspace is searched separately, and trials are dealt to them evenly.

Numbers of an axis that lists its values are categories, as are lists of sites; ranges are floats or whole numbers, on
their own scale.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lexray.training.dictionaries import architecture
from lexray.tuning.file.axes import SITE_AXES, Point, Range, Values, grid
from lexray.tuning.file.points import effective, key
from lexray.tuning.file.sweep_file import SweepFile

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

Axes = Mapping[str, Values]
Sampler = Literal["tpe", "nsga2"]
FIRST_AT_RANDOM = 10
"""Random points before the tree-structured estimator starts, and the population size of NSGA-II: sweeps have tens of
trials, all of which would be random under Optuna's own 50."""


_SITES = tuple(dict.fromkeys(axis for axes in SITE_AXES.values() for axis in axes))


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


def subspaces(sweep: SweepFile) -> list[Axes]:
    """Return the axes of each subspace: those of the sweep, with one choice of sites and the architectures for them."""
    listed = {
        axis: values
        for axis, values in sweep.axes.items()
        if axis in ("architecture", *_SITES) and not isinstance(values, Range)
    }
    sites: dict[str, Point] = {}
    names: dict[str, list[str]] = {}
    for point in grid(listed):
        name = point["architecture"]
        read = {axis: value for axis, value in effective(sweep, point).items() if axis in _SITES}
        subspace = key({"kind": architecture(name).kind, **read})
        sites.setdefault(subspace, {axis: value for axis, value in point.items() if axis in _SITES})
        if name not in names.setdefault(subspace, []):
            names[subspace].append(name)
    return [
        {**sweep.axes, **{axis: [value] for axis, value in point.items()}, "architecture": [*names[subspace]]}
        for subspace, point in sites.items()
    ]


def has_widths(axes: Axes) -> bool:
    """Return whether the subspace has several widths, which differ in cost."""
    values = axes["width" if "width" in axes else "expansion"]
    return isinstance(values, Range) or len(values) > 1


def proposals(axes: Axes, known: Sequence[Known], *, sampler: Sampler, seed: int, num_values: int) -> Iterator[Point]:
    """Yield points without end, most promising first; earlier ones of the same call count as running."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["minimize"] * num_values, sampler=_sampler(sampler, seed))
    distributions = {axis: _distribution(values) for axis, values in axes.items()}
    for before in sorted(known, key=lambda one: (one.number, key(one.point))):
        _tell(study, axes, distributions, before)
    while True:
        asked = study.ask(distributions).params
        yield {axis: _value(axes[axis], asked[axis]) for axis in axes}


def seed_of(*parts: int | str) -> int:
    """Derive a sampler's seed from the parts."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:4], "big")


def fits(axes: Axes, point: Point) -> bool:
    """Return whether a point has a value of each axis and nothing else."""
    return point.keys() == axes.keys() and all(_has(axes[axis], value) for axis, value in point.items())


def _has(values: Values, value: Any) -> bool:
    if isinstance(values, Range):
        whole_enough = isinstance(value, int) if values.whole else isinstance(value, int | float)
        return whole_enough and not isinstance(value, bool) and values.low <= value <= values.high
    return key(value) in map(key, values)


def _tell(study: Study, axes: Axes, distributions: Mapping[str, BaseDistribution], one: Known) -> None:
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
        return CategoricalDistribution(list(dict.fromkeys(map(key, values))))
    is_log = values.scale == "log"
    if values.whole:
        return IntDistribution(int(values.low), int(values.high), log=is_log)
    return FloatDistribution(values.low, values.high, log=is_log)


def _choice(values: Values, value: Any) -> Any:
    """Convert a value to the representation in its axis's distribution."""
    return value if isinstance(values, Range) else key(value)


def _value(values: Values, choice: Any) -> Any:
    if isinstance(values, Range):
        return values.rounded(choice)
    return next(value for value in values if key(value) == choice)
