"""What RESULTS.md says of the study follows from its numbers by a rule."""

import json
import math

import pytest

from benchmarks import check_ground_truth
from benchmarks.check_ground_truth import (
    RESULTS,
    STUDY,
    compact,
    generated,
    sentence,
    study_of,
    verdicts,
    with_generated,
)
from benchmarks.ground_truth_claims import TOPICS, Claim
from lexray.tuning.ground_truth.arms import plans
from lexray.tuning.ground_truth.estimates import Estimate, estimate, order
from lexray.tuning.ground_truth.settings import read_tuned
from lexray.tuning.ground_truth.worlds import WORLDS


def test_the_standard_error_of_one_value_a_seed():
    """Deviations -1, 0, 1: variance 1, of the mean of three 1 / 3."""
    assert estimate("cosine", [1.0, 2.0, 3.0]) == Estimate(2.0, pytest.approx(3**-0.5))
    assert estimate("cosine", [1.0]) == Estimate(1.0, math.inf)


def test_pairs_share_seeds_so_their_standard_error_is_larger():
    """Without each of three seeds one pair is left: 1, 2 and 3 about 2, so sqrt(2 / 3 * 2)."""
    assert estimate("stability", [1.0, 2.0, 3.0]) == Estimate(2.0, pytest.approx((4 / 3) ** 0.5))
    assert estimate("stability_at_start", [0.5]) == Estimate(0.5, math.inf)


def test_the_standard_error_of_the_pairs_of_four_seeds():
    """Only seeds 2 and 3 agree, to 6: three pairs are left without a seed, mean 2 without 0 or 1, else 0; sqrt(3)."""
    assert estimate("stability", [0.0, 0.0, 0.0, 0.0, 0.0, 6.0]) == Estimate(1.0, pytest.approx(3**0.5))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0.90, 0.03), (0.79, 0.04), "above"),  # 0.11 apart, twice the error is 0.10
        ((0.79, 0.04), (0.90, 0.03), "below"),
        ((0.90, 0.03), (0.81, 0.04), "tie"),
        ((0.904, 0.0), (0.900, 0.0), "tie"),  # too small to say anything
        ((0.906, 0.0), (0.900, 0.0), "above"),
        ((0.9, math.inf), (0.1, 0.0), "tie"),
    ],
)
def test_two_standard_errors_of_the_difference_decide(one, other, expected):
    assert order(Estimate(*one), Estimate(*other)) == expected


TOY = {
    "w": {
        "a": {"cosine": [0.90, 0.91, 0.92]},
        "b": {"cosine": [0.80, 0.81, 0.82]},
        "c": {"cosine": [0.90, 0.92, 0.91]},
        "d": {"cosine": [0.97, 0.98, 0.99]},
    }
}


def toy_claim(*others, worlds=("w",)) -> Claim:
    return Claim("`a` is better", "cosine", "a", "above", others, worlds)


def test_a_claim_holds_or_does_not_or_nothing_is_known():
    found = list(verdicts(toy_claim("b", "c", "d", 0.5), TOY))
    assert [one.word for one in found] == ["holds", "tie", "does not hold", "holds"]
    assert [one.text for one in found[::3]] == ["`b` 0.810 ± 0.006", "0.500"]


def test_a_sentence_counts_verdicts_and_lists_those_that_do_not_hold():
    assert sentence(toy_claim("b", 0.5, "d"), TOY) == (
        "- `a` is better: **holds in 2 of 3, does not hold in 1 of 3**.\n"
        "  - holds: w 0.910 ± 0.006 to `b` 0.810 ± 0.006, 0.500\n"
        "  - does not hold: w 0.910 ± 0.006 to `d` 0.980 ± 0.006"
    )
    assert sentence(toy_claim("c"), TOY).startswith("- `a` is better: **tie**.\n  - tie: w 0.910")
    many = sentence(toy_claim(0.1, 0.2, 0.3, 0.4, 0.5), TOY)
    assert many == "- `a` is better: **holds in all 5**."


def test_what_the_study_does_not_have_is_not_judged():
    assert not list(verdicts(toy_claim("b", worlds=("v",)), TOY))
    assert not list(verdicts(toy_claim("e"), TOY))
    assert sentence(toy_claim("e"), TOY) == ""


def test_results_md_says_what_the_committed_study_says():
    page = RESULTS.read_text()
    assert with_generated(page, generated(json.loads(STUDY.read_text()), read_tuned())) == page


def test_the_committed_study_has_the_arms_of_the_plans_and_its_own_form():
    document = json.loads(STUDY.read_text())
    assert compact(document) == STUDY.read_text()
    found, planned = study_of(document), plans()
    for world, arms in found.items():
        assert list(arms) == [arm.name for arm in planned[world].arms]


def test_claims_name_dictionaries_and_worlds_that_there_are():
    planned = {name: {arm.name for arm in plan.arms} for name, plan in plans().items()}
    for claim in (claim for topic in TOPICS for claim in topic.claims):
        assert set(claim.worlds) <= set(WORLDS)
        named = {claim.arm, *(other for other in claim.others if isinstance(other, str))}
        assert all(named <= planned[world] for world in claim.worlds), claim.statement
        assert claim.metric in check_ground_truth.COLUMNS
