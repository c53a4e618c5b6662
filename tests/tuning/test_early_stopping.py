"""Whatever trials measured: no trial ends that could be on the frontier, and the rules mean what they say."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexray.tuning.endings.early_stopping import (
    Candidate,
    Measure,
    RungEntry,
    beats,
    decide,
    measured,
    noise_of,
    rung_steps,
)
from lexray.tuning.file.stop_block import LAST_SHARE, StopRules
from lexray.tuning.results.frontier import non_dominated

FVU = st.one_of(st.sampled_from([0.1, 0.2, 0.5, math.nan]), st.floats(0.001, 2.0))
NOISE = st.sampled_from([0.0, 0.001, 0.02, math.inf])


@st.composite
def reached(draw, trial: str, noise=NOISE) -> RungEntry:
    target = draw(st.sampled_from([8.0, 16.0]))
    return RungEntry(
        candidate=Candidate(
            trial=trial,
            configuration=draw(st.sampled_from("abcd")) + f"{target:g}",
            target_l0=target,
            comparable=draw(st.sampled_from(["w64", "w64", "w128"])),
        ),
        measure=Measure(
            l0=target * draw(st.sampled_from([0.8, 0.95, 1.0, 1.0, 1.01, 1.09])),
            fvu=draw(FVU),
            l0_noise=draw(noise),
            fvu_noise=draw(noise),
        ),
    )


@st.composite
def rungs(draw, noise=NOISE) -> list[RungEntry]:
    return [draw(reached(f"t{i}", noise)) for i in range(draw(st.integers(1, 10)))]


RULES = st.builds(
    StopRules,
    rule=st.sampled_from(["asha", "frontier", "both"]),
    eta=st.integers(2, 4),
    margin=st.floats(0.0, 0.5),
    z=st.floats(0.0, 3.0),
    seeds_compete=st.booleans(),
)


def stopped(rules: StopRules, rung: list[RungEntry]) -> set[str]:
    """The trials that would end if each were the last to reach the rung."""
    return {me.candidate.trial for me in rung if decide(rules, me, [o for o in rung if o is not me]) is not None}


def topk(trial: str, fvu: float, *, l0: float = 8.0, noise: float = 0.0, configuration: str | None = None) -> RungEntry:
    """A trial with the target L0 that it has."""
    return RungEntry(
        candidate=Candidate(trial=trial, configuration=configuration or trial, target_l0=l0, comparable="w64"),
        measure=Measure(l0=l0, fvu=fvu, l0_noise=0.0, fvu_noise=noise),
    )


@given(RULES, rungs(st.just(0.0)))
@settings(max_examples=300, deadline=None)
def test_a_trial_that_no_other_dominates_never_ends(rules, rung):
    for name in {r.candidate.comparable for r in rung}:
        group = [r for r in rung if r.candidate.comparable == name]
        kept = non_dominated([r.measure.l0 for r in group], [r.measure.fvu for r in group])
        ended = stopped(rules, rung)
        assert not [r for r, on in zip(group, kept, strict=True) if on and r.candidate.trial in ended]


@given(RULES, rungs())
@settings(deadline=None)
def test_the_best_of_a_width_never_ends_whatever_the_noise(rules, rung):
    for name in {r.candidate.comparable for r in rung}:
        group = [r for r in rung if r.candidate.comparable == name and not math.isnan(r.measure.fvu)]
        if group:
            assert min(group, key=lambda r: r.measure.fvu).candidate.trial not in stopped(rules, rung)


@given(RULES, rungs())
@settings(deadline=None)
def test_whoever_ends_was_beaten_by_the_one_that_is_named_beyond_the_noise(rules, rung):
    by_trial = {r.candidate.trial: r for r in rung}
    for me in rung:
        decision = decide(rules, me, rung)
        if decision is None:
            continue
        winner, loser = by_trial[decision.by].measure, me.measure
        assert winner.l0 <= loser.l0 * 1.02
        noise = math.hypot(winner.fvu_noise, loser.fvu_noise)
        assert loser.fvu - winner.fvu > (rules.z * noise if rules.z else 0.0)
        if decision.rule == "frontier":
            assert loser.fvu - winner.fvu > rules.margin * loser.fvu
        else:
            assert by_trial[decision.by].candidate.target_l0 == me.candidate.target_l0


@given(RULES, st.data())
@settings(deadline=None)
def test_the_order_in_which_others_came_does_not_matter(rules, data):
    rung = data.draw(rungs())
    shuffled = data.draw(st.permutations(rung[1:]))
    assert decide(rules, rung[0], rung[1:]) == decide(rules, rung[0], shuffled)


def test_an_l0_is_no_larger_within_its_noise_whatever_z_is():
    rung = [
        topk("a", 0.1, l0=8.04),
        replace(topk("b", 0.2), measure=Measure(l0=8.0, fvu=0.2, l0_noise=0.03, fvu_noise=0.0)),
    ]
    for z in (0.0, 10.0):
        assert stopped(StopRules(rule="frontier", z=z), rung) == {"b"}


@given(RULES, rungs(), st.floats(0.0, 0.5))
@settings(deadline=None)
def test_a_larger_margin_or_z_stops_no_more(rules, rung, more):
    assert stopped(rules.model_copy(update={"margin": rules.margin + more}), rung) <= stopped(rules, rung)
    assert stopped(rules.model_copy(update={"z": rules.z + 10 * more}), rung) <= stopped(rules, rung)


@given(RULES, rungs())
@settings(deadline=None)
def test_alone_in_its_group_none_ends(rules, rung):
    me = rung[0]
    strangers = [o for o in rung[1:] if o.candidate.comparable != me.candidate.comparable]
    assert decide(rules, me, strangers) is None
    assert decide(rules, me, []) is None


@given(RULES, rungs())
@settings(deadline=None)
def test_who_is_not_settled_or_not_finite_neither_ends_nor_beats(rules, rung):
    absent = {r.candidate.trial for r in rung if not r.is_settled or math.isnan(r.measure.fvu)}
    assert not stopped(rules, rung) & absent
    moving = [r for r in rung if not r.is_settled]
    settled = [r for r in rung if r.is_settled]
    assert stopped(rules, settled) == stopped(rules, settled + moving)


def test_halving_keeps_the_best_share_of_those_with_one_target():
    rules = StopRules(rule="asha", eta=2)
    rung = [topk(f"t{i}", 0.1 + 0.1 * i) for i in range(8)]
    assert stopped(rules, rung) == {"t4", "t5", "t6", "t7"}
    assert stopped(rules.model_copy(update={"eta": 4}), rung) == {f"t{i}" for i in range(2, 8)}
    elsewhere = [topk(f"u{i}", 0.01, l0=4.0) for i in range(8)]
    assert stopped(rules, [*rung, *elsewhere]) == {"t4", "t5", "t6", "t7"}


def test_nobody_ends_before_eta_configurations_were_there():
    rules, rung = StopRules(rule="asha", eta=3), [topk("a", 0.1), topk("b", 0.9)]
    assert stopped(rules, rung) == set()
    assert stopped(rules, [*rung, topk("c", 0.5)]) == {"b", "c"}


def test_one_whose_values_are_not_numbers_counts_among_those_that_came():
    rules, rung = StopRules(rule="asha", eta=3), [topk("a", 0.1), topk("b", 0.9), topk("c", math.nan)]
    assert stopped(rules, rung) == {"b"}


def test_seeds_do_not_compete_unless_they_are_asked_to():
    rules = StopRules(rule="asha", eta=2)
    seeds = [topk(f"s{i}", 0.2 + 0.1 * i, configuration="a") for i in range(4)]
    assert stopped(rules, seeds) == set()
    assert stopped(rules.model_copy(update={"seeds_compete": True}), seeds) == {"s2", "s3"}
    better = topk("b", 0.35)
    assert stopped(rules, [*seeds, better]) == {"b"}  # none of a's: its best seed is ahead
    assert stopped(rules, [*seeds, topk("c", 0.1)]) == {"s0", "s1", "s2", "s3"}


def test_across_targets_only_the_frontier_rule_judges_and_only_beyond_the_margin():
    sparse, dense = topk("sparse", 0.30, l0=8.0), topk("dense", 0.31, l0=16.0)
    assert stopped(StopRules(rule="both", eta=2), [sparse, dense]) == set()
    assert stopped(StopRules(rule="both", eta=2, margin=0.03), [sparse, dense]) == {"dense"}
    assert stopped(StopRules(rule="asha", eta=2), [sparse, dense]) == set()


def test_a_dictionary_of_several_sparsities_is_beaten_by_its_own_kind_alone():
    rules, good = StopRules(rule="both", eta=2), topk("good", 0.1)
    several, better = (
        replace(r, candidate=replace(r.candidate, family="HierarchicalTopK")) for r in (topk("a", 0.3), topk("b", 0.2))
    )
    assert stopped(rules, [good, several]) == set()
    assert stopped(rules, [good, several, better]) == {"a"}
    assert stopped(rules, [topk("plain", 0.5), several]) == {"plain"}


def test_noise_protects():
    rules = StopRules(rule="both", eta=2, margin=0.0)
    assert stopped(rules, [topk("a", 0.30), topk("b", 0.33)]) == {"b"}
    assert stopped(rules, [topk("a", 0.30, noise=0.02), topk("b", 0.33)]) == set()
    assert stopped(rules, [topk("a", 0.30, noise=math.inf), topk("b", 0.33)]) == set()


def test_steady_progress_is_no_noise_and_two_evaluations_tell_none():
    assert noise_of([0.5, 0.4, 0.3, 0.2]) == pytest.approx(0.0, abs=1e-12)
    assert noise_of([0.5, 0.4]) == math.inf
    assert noise_of([0.5, 0.4, math.nan]) == math.inf
    # About the line 0.3 the residuals are 0.1, -0.2, 0.1: sqrt(0.06 / 1).
    assert noise_of([0.4, 0.1, 0.4]) == pytest.approx(math.sqrt(0.06))


def test_a_measure_is_the_newest_evaluation_and_the_spread_of_the_newest_five():
    evaluations = [{"eval/l0": 8.0, "eval/fvu": fvu} for fvu in (9.0, 0.4, 0.4, 0.4, 0.4, 0.4)]
    none = pytest.approx(0.0, abs=1e-12)
    assert measured(evaluations) == Measure(l0=8.0, fvu=0.4, l0_noise=none, fvu_noise=none)


def test_evaluations_without_an_fvu_stop_nothing():
    nothing = measured([{"eval/l0": 8.0, "eval/fvu": None}] * 4)
    assert math.isnan(nothing.fvu)
    assert nothing.fvu_noise == math.inf
    rules = StopRules(rule="asha", eta=2)
    assert stopped(rules, [topk("a", 0.30), topk("b", math.nan)]) == set()


@given(st.integers(1, 10_000), st.integers(1, 500), st.integers(2, 5), st.floats(0.01, 0.7))
@settings(deadline=None)
def test_rungs_are_evaluations_with_a_noise_before_the_end(num_steps, evaluate, eta, first_share):
    steps = rung_steps(StopRules(rule="asha", eta=eta, first_share=first_share), num_steps, evaluate)
    assert list(steps) == sorted(set(steps))
    for step in steps:
        assert step % evaluate == 0
        assert 3 * evaluate <= step < num_steps
        assert step >= first_share * num_steps * (1 - 1e-6)
        assert step < LAST_SHARE * num_steps + evaluate


def test_rungs_lie_at_geometric_shares():
    assert rung_steps(StopRules(rule="asha", eta=2, first_share=0.125), 800, 10) == (100, 200, 400)
    assert rung_steps(StopRules(rule="asha", eta=3, first_share=0.1), 1000, 30) == (120, 300)


def test_an_l0_that_is_larger_within_its_noise_is_no_larger():
    one = Measure(l0=8.05, fvu=0.1, l0_noise=0.0, fvu_noise=0.0)
    other = Measure(l0=8.0, fvu=0.2, l0_noise=0.0, fvu_noise=0.0)
    assert not beats(one, other, margin=0.0, z=2.0)
    assert beats(replace(one, l0_noise=0.05), other, margin=0.0, z=2.0)
    assert not beats(replace(one, l0=8.2, l0_noise=1.0), other, margin=0.0, z=2.0)
