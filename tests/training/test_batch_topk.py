"""BatchTopK's thresholds: exact in training, a running mean at inference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_cases import B, F, K, find_case, loss_of, named, random_dictionary, random_rows
from training_dense import Problem

from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.objectives.forward import BatchSums

OVER_THE_BATCH = ("batch_topk", "matryoshka_batch_topk", "transcoder-batch_topk", "archetypal-batch_topk")
BATCH_CASES = [find_case(name) for name in (*OVER_THE_BATCH, "batch_topk-free", "crosscoder_batch_topk")]


def scores_of(case, made: Dictionary, rows) -> Tensor:
    """Pre-activations times the norms of their atoms."""
    problem = Problem(case, made, rows)
    return (problem.z * problem.norms).detach()


@pytest.mark.parametrize("case", **named(BATCH_CASES))
@given(seed=st.integers(0, 2**31), count=st.integers(1, 40), threshold=st.floats(0, 5))
@settings(max_examples=20)
def test_k_times_rows_are_kept_whatever_the_running_threshold(case, seed, count, threshold):
    made = random_dictionary(case, seed)
    rows = random_rows(made.sites, seed, count)
    scores = scores_of(case, made, rows)
    made.threshold.fill_(threshold)
    terms = loss_of(made, rows)
    assert terms.sums["active"] == min(K * count, int((scores > 0).sum()))
    kept = scores[scores > 0].sort(descending=True).values[: K * count]
    expected = kept[-1] if len(kept) == K * count else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(terms.observed["smallest_kept"], expected)


def test_of_activations_equal_to_the_smallest_kept_the_first_are_kept():
    config = dictionary_config({"architecture": "batch_topk", "width": 4, "target_l0": 1})
    made = make_dictionary(config, Sites.same(SiteStatistics(mean=(0.0,) * 4, mean_squared_norm=1.0)))
    made.load_state_dict({**made.state_dict(), "W_enc": torch.eye(4)})  # every row is its own code
    terms = made.loss(torch.tensor([[5.0, 3.0, 3.0, 0.0], [2.0, 3.0, -3.0, 0.0]]), 2)
    assert terms.observed["smallest_kept"] == 3
    assert terms.fired_F.tolist() == [1, 1, 0, 0]


def test_the_running_threshold_has_a_window_of_few_steps_at_first_and_that_of_its_decay_later():
    made = random_dictionary(find_case("batch_topk"), 0, threshold_decay=0.9)
    for step, smallest, expected in ((0, 2.0, 2.0), (1, 3.0, 0.1 * 2.0 + 0.9 * 3.0), (99, 2.0, 0.9 * 2.9 + 0.1 * 2.0)):
        made.at_step(step, 100)
        made.after_step(BatchSums(B, {}, torch.zeros(F), {"smallest_kept": torch.tensor(smallest)}))
        assert float(made.threshold) == pytest.approx(expected)


@pytest.mark.parametrize("case", **named(BATCH_CASES))
@pytest.mark.parametrize("threshold", [0.0, 0.5, 100.0])
def test_validation_rows_have_the_target_l0_once_the_threshold_is_set_on_them(case, threshold):
    made = random_dictionary(case, 3)
    batches = [random_rows(made.sites, seed, 16) for seed in (1, 2, 3)]
    made.threshold.fill_(threshold)
    made.calibrate(lambda: batches)
    active = sum(int(made.encode(rows.x_BD).active_per_row.sum()) for rows in batches)
    assert active == K * 48 - 1, "the smallest one is not above the threshold, as in training"


def test_rows_with_too_few_activations_leave_the_threshold():
    made = random_dictionary(find_case("batch_topk"), 3)
    made.threshold.fill_(0.7)
    made.calibrate(lambda: [])
    made.load_state_dict({**made.state_dict(), "b_enc": torch.full((F,), -1e3)})
    made.calibrate(lambda: [random_rows(made.sites, 1, 16)])
    assert float(made.threshold) == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["batch_topk", "matryoshka_batch_topk"])
def test_a_batch_keeps_k_times_its_rows_where_k_is_no_whole_number(name):
    made = random_dictionary(find_case(name), 0, target_l0=2.6)
    terms = loss_of(made, random_rows(made.sites, 0, 10))
    assert terms.sums["active"] == 26


@pytest.mark.parametrize("case", **named(BATCH_CASES))
def test_inference_keeps_what_is_above_the_threshold_whatever_else_is_in_the_batch(case):
    made = random_dictionary(case, 0)
    rows = random_rows(made.sites, 0)
    made.threshold.fill_(0.7)
    scores, z = scores_of(case, made, rows), Problem(case, made, rows).z.detach()
    expected = torch.where(scores > 0.7, z, 0)
    assert expected.any()
    torch.testing.assert_close(made.encode(rows.x_BD).dense(), expected)
    torch.testing.assert_close(made.encode(rows.x_BD[3:4]).dense(), expected[3:4])


@pytest.mark.parametrize("case", **named(BATCH_CASES))
def test_with_its_threshold_at_the_smallest_kept_inference_keeps_what_training_kept_but_that_one(case):
    made = random_dictionary(case, 8)
    rows = random_rows(made.sites, 8)
    terms = loss_of(made, rows)
    made.after_step(BatchSums(B, {}, terms.fired_F, terms.observed))
    assert int(made.encode(rows.x_BD).active_per_row.sum()) == int(terms.sums["active"]) - 1
