"""What changes over a training by plan: k, p, the penalty's weight, random prefixes."""

import math

import pytest
import torch
from training_cases import B, Case, F, K, find_case, loss_of, named, random_dictionary, random_rows

from lexray.training.dictionaries import dictionary_config
from lexray.training.objectives.forward import BatchSums, LossOutput

STEPS = 100
P_CASES = [find_case(name) for name in ("p_anneal", "p_anneal-free", "gated_p_anneal")]


# k ----------------------------------------------------------------------------------------------------------------


def test_k_falls_linearly_from_its_start_and_stays_at_the_target():
    made = random_dictionary(find_case("topk"), 0, k_start=25, k_anneal=0.2)
    seen = []
    for step in range(STEPS):
        made.at_step(step, STEPS)
        seen.append(made.code.k)
    assert seen[:21] == [25 - step for step in range(21)]
    assert seen[20:] == [K] * 80


@pytest.mark.parametrize("name", ["topk", "batch_topk", "hierarchical_topk", "abs_topk"])
def test_training_keeps_the_k_of_its_step_and_inference_the_target(name):
    made = random_dictionary(find_case(name), 0, k_start=9, k_anneal=0.5)
    rows = random_rows(made.sites, 0)
    for step, k in ((0, 9), (25, 7), (50, K), (99, K)):
        made.at_step(step, STEPS)
        assert loss_of(made, rows).sums["active"] == k * B
    made.at_step(0, STEPS)
    if name != "batch_topk":
        assert (made.encode(rows.x_BD).active_per_row == K).all()


# p ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", **named(P_CASES))
def test_p_is_one_at_first_and_falls_to_its_end_in_equal_jumps(case):
    made = random_dictionary(case, 0, p_end=0.5, p_from=0.2, p_until=0.7, p_jumps=5)
    values = [made.config.code.p_at(step / STEPS) for step in range(STEPS + 1)]
    assert values[:30] == [1.0] * 30
    for jump, start in enumerate(range(30, 70, 10)):
        assert values[start : start + 10] == pytest.approx([1 - 0.1 * (jump + 1)] * 10)
    assert values[70:] == pytest.approx([0.5] * 31)


def step_of(case: Case, made, step: int, rows) -> tuple[LossOutput, BatchSums]:
    made.at_step(step, STEPS)
    terms = loss_of(made, rows)
    return terms, BatchSums(
        B, {name: float(value) for name, value in terms.sums.items()}, terms.fired_F, terms.observed
    )


@pytest.mark.parametrize("case", **named(P_CASES))
def test_at_a_jump_of_p_the_weight_is_rescaled_so_that_the_penalty_keeps_its_size(case):
    made = random_dictionary(case, 0, p_from=0.1, p_until=0.6, p_jumps=5)
    rows = random_rows(made.sites, 0)
    terms, batch = step_of(case, made, 19, rows)
    made.controller.gains = type(made.controller.gains)(gain=0.0)
    before = float(made.code.coefficient) * batch.sums["sparsity"]
    made.after_step(batch)
    after_terms, after = step_of(case, made, 20, rows)
    assert made.config.code.p_at(0.20) < made.config.code.p_at(0.19)
    assert after.sums["sparsity"] != pytest.approx(batch.sums["sparsity"], rel=1e-2)
    assert float(made.code.coefficient) * after.sums["sparsity"] == pytest.approx(before, rel=1e-5)
    torch.testing.assert_close(after_terms.loss, terms.loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", **named(P_CASES))
def test_between_jumps_the_weight_is_the_controller_s_alone(case):
    made = random_dictionary(case, 0)
    made.controller.gains = type(made.controller.gains)(gain=0.0)
    before = float(made.code.coefficient)
    for step in (0, 5, 50, 99):
        made.after_step(step_of(case, made, step, random_rows(made.sites, step))[1])
    assert float(made.code.coefficient) == before


@pytest.mark.parametrize("case", **named(P_CASES))
def test_with_p_at_one_the_penalty_is_that_of_the_architecture_without_annealing(case):
    other = find_case(str(case).replace("gated_p_anneal", "gated").replace("p_anneal", "relu"))
    made, plain = random_dictionary(case, 0), random_dictionary(other, 0)
    rows = random_rows(made.sites, 0)
    made.at_step(0, STEPS)
    torch.testing.assert_close(loss_of(made, rows).loss, loss_of(plain, rows).loss)


# The penalty's weight ---------------------------------------------------------------------------------------------

WARMING = [find_case(name) for name in ("relu", "gated", "jumprelu", "crosscoder", "p_anneal")]


@pytest.mark.parametrize("case", **named(WARMING))
def test_the_weight_rises_linearly_from_zero_while_the_controller_waits(case):
    made = random_dictionary(case, 0, coefficient_warmup=0.2)
    rows = random_rows(made.sites, 0)
    full = float(made.controller.coefficient)
    for step in range(0, 20, 4):
        _, batch = step_of(case, made, step, rows)
        assert float(made.code.coefficient) == pytest.approx(full * step / 20)
        made.controller.after_evaluation(3.0)
        made.after_step(batch._replace(sums={**batch.sums, "sparsity": 1.0, "sparsity_next_p": 1.0}))
        assert float(made.controller.coefficient) == full
    made.at_step(20, STEPS)
    assert float(made.code.coefficient) == pytest.approx(full)
    made.after_step(BatchSums(B, {"active": 10.0 * F * B, "sparsity": 1.0, "sparsity_next_p": 1.0}, torch.ones(F), {}))
    assert float(made.controller.coefficient) > full


@pytest.mark.parametrize("case", **named(WARMING))
def test_the_controller_is_handed_the_mean_l0_of_the_global_batch(case):
    made = random_dictionary(case, 0)
    before = float(made.controller.log_coefficient)
    sums = {"active": 50 * 2 * float(K), "sparsity": 1.0, "sparsity_next_p": 1.0}
    made.after_step(BatchSums(50, sums, torch.ones(F), {}))
    assert float(made.controller.batch_l0) == 2 * K
    assert float(made.controller.log_coefficient) > before
    made.after_evaluation({"l0": 3 * K})
    assert float(made.controller.log_ratio) > 0


def test_the_aim_of_the_quadratic_loss_falls_as_the_controller_asks_for_fewer_latents():
    made = random_dictionary(find_case("jumprelu-quadratic"), 0)
    rows = random_rows(made.sites, 0)
    first = float(loss_of(made, rows).observed["aim"])
    made.controller.log_coefficient.add_(math.log(2))
    assert float(loss_of(made, rows).observed["aim"]) == pytest.approx(first / 2)


# Random prefixes --------------------------------------------------------------------------------------------------


def widths_of(seed: int, step: int, **options) -> list[int]:
    made = random_dictionary(find_case("matryoshka_batch_topk"), seed, random_prefixes=4, **options)
    made.at_step(step, STEPS)
    return made.code.prefix_widths()


def test_random_prefixes_are_a_function_of_the_seed_and_the_step():
    assert widths_of(1, 5) == widths_of(1, 5)
    many = [tuple(widths_of(1, step)) for step in range(20)]
    assert len(set(many)) > 10
    assert many != [tuple(widths_of(2, step)) for step in range(20)]
    for widths in many:
        assert list(widths) == sorted(set(widths))
        assert widths[0] >= 1
        assert widths[-1] == F


def test_random_prefixes_follow_their_stated_density():
    """Of density s^-(1 + power) between 1 / width and 1, the share above s is (s^-power - 1) / (width^power - 1)."""
    config = {"architecture": "matryoshka_batch_topk", "width": 4096, "target_l0": 4, "random_prefixes": 2000}
    made = random_dictionary(find_case("matryoshka_batch_topk"), 0)
    made.config = dictionary_config(config)
    made.code.config = made.config.code
    generator = torch.Generator().manual_seed((made.seed * 1_000_003 + made.step) % 2**63)
    drawn = torch.rand(2000, generator=generator, dtype=torch.float64)
    shares = ((1 - drawn) * (4096**0.5 - 1) + 1).pow(-2)
    assert made.code.prefix_widths() == sorted({max(1, round(share * 4096)) for share in shares.tolist()} | {4096})
    for share in (0.001, 0.01, 0.1):
        expected = (share**-0.5 - 1) / (4096**0.5 - 1)
        assert float((shares > share).double().mean()) == pytest.approx(expected, abs=0.04)


def test_fixed_prefixes_are_shares_of_the_width():
    made = random_dictionary(find_case("matryoshka_batch_topk"), 0, prefixes=(0.01, 0.1, 0.5))
    assert made.code.prefix_widths() == [1, 3, 15, 30]
