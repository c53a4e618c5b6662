"""Upper bounds of trials not yet proposed: the largest dictionary of each architecture that the axes allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lexray.tuning.planning.plan import Plan
from lexray.tuning.trials import Trial


def largest(bounds: Iterable[Trial]) -> list[Trial]:
    """Return the largest trial of each architecture among those at the corners of the axes."""
    found: dict[str, Trial] = {}
    for trial in bounds:
        name = trial.config.dictionary.architecture
        if name not in found or _size(trial) > _size(found[name]):
            found[name] = trial
    return list(found.values())


def _size(trial: Trial) -> tuple[float, float]:
    """Return rows times parameters, up to constants of an architecture; then the active latents."""
    config = trial.config
    return config.rows * config.dictionary.width * len(config.data.sites), config.dictionary.target_l0


def upper_bound(plan_of: Callable[[Sequence[Trial]], Plan], bounds: Iterable[Trial], count: int) -> Plan:
    """Plan a sweep that proposes `count` trials later: each number is the maximum over architectures.

    `plan_of` returns the plan with the given trials added.
    """
    plans = [plan_of([replace(t, id=f"{t.id}/{n}") for n in range(count)]) for t in largest(bounds)]
    known = plans[0].trials[:-count]
    return replace(
        plans[0],
        trials=[*known, *(replace(plan.trials[-1], is_bound=True) for plan in plans)],
        chosen_later=count,
        at_once=max(plan.at_once for plan in plans),
        steps=max(plan.steps for plan in plans),
        store_bytes=max(plan.store_bytes for plan in plans),
        store_bytes_at_most=max(plan.store_bytes_at_most for plan in plans),
        seconds=_most(plan.seconds for plan in plans),
        cpu_hours=_most(plan.cpu_hours for plan in plans),
        gpu_hours=_most(plan.gpu_hours for plan in plans),
        cost=_most(plan.cost for plan in plans),
        speeds={kind: speed for plan in plans for kind, speed in plan.speeds.items()},
        warnings=list(dict.fromkeys(line for plan in plans for line in plan.warnings)),
    )


def _most(values: Iterable[float | None]) -> float | None:
    """Return the maximum; None if a value is unknown."""
    known = list(values)
    return None if None in known else max(value for value in known if value is not None)
