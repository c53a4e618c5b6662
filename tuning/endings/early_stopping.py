"""Early stopping of trials: pure functions of the trials' metrics at the same rung.

A rung is an evaluation at a stated share of a training. There a trial is compared with the others that have reached it
by two rules; neither stops a trial that could still be on the frontier as far as the rung shows:

- `asha`, among trials with equal width, sites, rows and target L0: once eta configurations have reached the rung, only
the best 1/eta of them continue (Li et al. 2020, arXiv:1810.05934, in the form that stops and never resumes: a
trial is decided on arrival, by the data available then).
- `frontier`, among trials of equal width, sites and rows: one that is beaten by more than `margin` ends.

Both stop a trial only if another one *beats* it: its L0 is no larger and its FVU is smaller, by more than `z` times the
noise of the two. Seeds of one configuration are replicas that show its stability: they do not compete, and none of
them stops unless all of them are beaten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lexray.tuning.file.stop_block import LAST_SHARE, Rule, StopRules

NOISE_EVALUATIONS = 5
"""Number of newest evaluations whose spread is the noise of a rung."""
MIN_EVALUATIONS = 3
"""Minimum evaluations of a noise estimate: two always lie on a line."""
SETTLED = 0.1
"""Relative distance of L0 from its target above which a trial is neither stopped nor compared with: it is still moving.
"""
L0_NOISES = 2.0
"""Noises by which an L0 may be larger and still count as no larger. Not `z`: a larger `z` must stop no more trials."""
L0_TOLERANCE = 0.02
"""Maximum of that tolerance, relative to the L0."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A trial as the stopping rules see it."""

    trial: str
    configuration: str
    """Key equal for trials that differ in their seed only."""
    target_l0: float
    comparable: str
    """Key equal for trials of equal width, sites and rows: only these are compared."""
    family: str = ""
    """Set where one dictionary has points at several sparsities: only its own family can beat it, since the point
    measured here may be dominated while its others are not."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A trial's metrics at a rung, on validation rows."""

    l0: float
    fvu: float
    l0_noise: float
    """Standard deviation of one evaluation; infinite if unknown."""
    fvu_noise: float


@dataclass(frozen=True, kw_only=True)
class RungEntry:
    """A trial with its metrics at a rung."""

    candidate: Candidate
    measure: Measure

    @property
    def is_settled(self) -> bool:
        """Whether its L0 has settled near the target."""
        target = self.candidate.target_l0
        return math.isfinite(self.measure.l0) and abs(self.measure.l0 - target) <= SETTLED * target


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Reason to stop a trial at a rung."""

    rule: Rule
    by: str
    """The trial that beats it; the one with the smallest FVU among several."""


def rung_steps(rules: StopRules, num_steps: int, evaluate: int) -> tuple[int, ...]:
    """Steps of the rungs of a training evaluated every `evaluate` steps: the first evaluations at or after each share.

    Shares are first_share * eta^i up to `LAST_SHARE`. Those at which there is no noise yet are left out.
    """
    steps, share = [], rules.first_share
    while share <= LAST_SHARE:
        step = math.ceil(share * num_steps / evaluate - 1e-9) * evaluate
        if step >= MIN_EVALUATIONS * evaluate and step < num_steps:
            steps.append(step)
        share *= rules.eta
    return tuple(dict.fromkeys(steps))


def measured(evaluations: Sequence[Mapping[str, Any]]) -> Measure:
    """Return the newest evaluation (`eval/l0`, `eval/fvu`, in order) and the noise of the newest few."""
    newest = evaluations[-NOISE_EVALUATIONS:]
    l0, fvu = ([_number(record[name]) for record in newest] for name in ("eval/l0", "eval/fvu"))
    return Measure(l0=l0[-1], fvu=fvu[-1], l0_noise=noise_of(l0), fvu_noise=noise_of(fvu))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def noise_of(values: Sequence[float]) -> float:
    """Standard deviation about the line through evenly spaced values, so that steady progress is no noise.

    What bends counts as noise: a training that still improves fast is judged late rather than wrongly.
    """
    if len(values) < MIN_EVALUATIONS or not np.isfinite(values).all():
        return math.inf
    places = np.arange(len(values), dtype=np.float64)
    fitted = np.polynomial.Polynomial.fit(places, values, 1)(places)
    return float(np.sqrt(np.square(np.asarray(values) - fitted).sum() / (len(values) - 2)))


def decide(rules: StopRules, me: RungEntry, others: Iterable[RungEntry]) -> Decision | None:
    """Decide whether the trial stops at the rung that it and the others have reached; None to continue."""
    if not me.is_settled or not math.isfinite(me.measure.fvu):
        return None
    rivals = [o for o in others if o.is_settled and _may_compare(me.candidate, o.candidate)]
    replicas = [me, *(r for r in rivals if _is_replica(rules, me, r))]
    rivals = [r for r in rivals if not _is_replica(rules, me, r) and r.candidate.trial != me.candidate.trial]
    for rule in rules.names:
        decision = RULES[rule](rules, replicas, rivals)
        if decision is not None:
            return decision
    return None


def _asha(rules: StopRules, replicas: list[RungEntry], rivals: list[RungEntry]) -> Decision | None:
    """Stop a trial outside the best 1/eta of the configurations with its target, if one of these beats it."""
    rivals = [r for r in rivals if r.candidate.target_l0 == replicas[0].candidate.target_l0]
    best: dict[str, float] = {}
    for rival in rivals:
        key = _key(rules, rival)
        best[key] = min(best.get(key, math.inf), _worst_if_nan(rival.measure.fvu))
    mine = min(_worst_if_nan(r.measure.fvu) for r in replicas)
    number, ahead = len(best) + 1, sum(fvu < mine for fvu in best.values())
    if number < rules.eta or ahead < number // rules.eta:
        return None
    return _all_beaten("asha", replicas, rivals, margin=0.0, z=rules.z)


def _frontier(rules: StopRules, replicas: list[RungEntry], rivals: list[RungEntry]) -> Decision | None:
    """Stop a trial that is beaten by more than the margin."""
    return _all_beaten("frontier", replicas, rivals, margin=rules.margin, z=rules.z)


RULES = {"asha": _asha, "frontier": _frontier}


def _all_beaten(
    rule: Rule, replicas: list[RungEntry], rivals: list[RungEntry], *, margin: float, z: float
) -> Decision | None:
    """Return the decision on the first replica; None unless all of them are beaten."""
    winners = [
        [r for r in rivals if beats(r.measure, replica.measure, margin=margin, z=z)]
        for replica in replicas
        if math.isfinite(replica.measure.fvu)
    ]
    if not all(winners):
        return None
    best = min(winners[0], key=lambda r: (r.measure.fvu, r.candidate.trial))
    return Decision(rule=rule, by=best.candidate.trial)


def beats(one: Measure, other: Measure, *, margin: float, z: float) -> bool:
    """Return whether `one` is at least as sparse as `other` and more faithful, beyond the margin and both noises."""
    tolerance = min(L0_NOISES * math.hypot(one.l0_noise, other.l0_noise), L0_TOLERANCE * other.l0)
    gain = other.fvu - one.fvu
    noise = z * math.hypot(one.fvu_noise, other.fvu_noise)
    return one.l0 <= other.l0 + tolerance and gain > noise and gain > margin * other.fvu


def _may_compare(me: Candidate, other: Candidate) -> bool:
    return me.comparable == other.comparable and me.family in ("", other.family)


def _key(rules: StopRules, reached: RungEntry) -> str:
    return reached.candidate.trial if rules.seeds_compete else reached.candidate.configuration


def _is_replica(rules: StopRules, me: RungEntry, other: RungEntry) -> bool:
    same_trial = me.candidate.trial == other.candidate.trial
    return not same_trial and _key(rules, me) == _key(rules, other)


def _worst_if_nan(fvu: float) -> float:
    return math.inf if math.isnan(fvu) else fvu
