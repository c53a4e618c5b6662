"""Every architecture is its equations: losses, gradients and counts against dense references, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_cases import (
    K_AUX,
    LEARNED,
    PENALISED,
    Case,
    F,
    away_from_zero,
    find_case,
    gradients,
    loss_of,
    named,
    random_dictionary,
    random_rows,
)
from training_dense import EQUATIONS, dense_loss

from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.ops import preactivations as entries
from lexray.training.ops import topk as selection

WITH_AUXK = [case for case in LEARNED if "terms" in case.option_names]


def assert_is_the_dense_loss(case: Case, made: Dictionary, rows: RawRows) -> None:
    terms, dense = loss_of(made, rows), dense_loss(case, made, rows)
    torch.testing.assert_close(terms.loss, dense.loss)
    torch.testing.assert_close(gradients(made, terms.loss), gradients(made, dense.loss))
    torch.testing.assert_close(terms.sums["error"], (dense.error_BO**2).sum())
    normalised = (rows.y_BO - made.output.mean_D) / made.output.scale_D
    torch.testing.assert_close(terms.sums["variance"], (normalised**2).sum())
    assert terms.sums["active"] == (dense.code_BF != 0).sum()
    assert torch.equal(terms.fired_F, (dense.code_BF != 0).sum(0))
    assert not any(value.requires_grad for value in (*terms.sums.values(), *terms.observed.values()))


@pytest.mark.parametrize("case", **named(LEARNED))
@given(seed=st.integers(0, 2**31), count=st.integers(2, 40), bias=st.sampled_from([0.0, -1.0, -3.0]))
@settings(max_examples=8)
def test_loss_gradients_and_counts_are_those_of_the_dense_equations(case, seed, count, bias):
    """With a low bias fewer than k latents of a row are positive: those that relu cuts off are not active."""
    made = away_from_zero(random_dictionary(case, seed), bias)
    assert_is_the_dense_loss(case, made, random_rows(made.sites, seed, count))


def test_every_architecture_that_learns_by_gradient_has_a_dense_reference():
    assert {case.code for case in LEARNED} <= EQUATIONS.keys()


@pytest.mark.parametrize("sparse_below", [-1.0, 2.0], ids=["whole matrices", "few pairs"])
@pytest.mark.parametrize("case", **named(PENALISED))
@given(seed=st.integers(0, 2**31), bias=st.floats(-3, 1))
@settings(max_examples=6)
def test_both_forms_of_a_penalty_family_are_the_dense_equations(sparse_below, case, seed, bias):
    made = away_from_zero(random_dictionary(case, seed), bias)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(entries, "SPARSE_BELOW", sparse_below)
        assert_is_the_dense_loss(case, made, random_rows(made.sites, seed))


@pytest.mark.parametrize("case", **named([case for case in PENALISED if case.code in ("relu", "gated", "jumprelu")]))
def test_few_pairs_are_summed_alone_once_few_latents_are_active(case, monkeypatch):
    taken: list[int] = []
    before = entries.SparseEntries.decode
    monkeypatch.setattr(entries.SparseEntries, "decode", lambda *args: taken.append(1) or before(*args))
    made = random_dictionary(case, 0)
    rows = random_rows(made.sites, 0)
    loss_of(away_from_zero(made, 1.0), rows)
    assert not taken
    loss_of(away_from_zero(made, -5.0), rows)
    assert taken


@pytest.mark.parametrize("case", **named(WITH_AUXK))
def test_rows_may_be_looked_at_one_by_one(case, monkeypatch):
    """How many entries are looked at at once is a matter of memory alone."""
    monkeypatch.setattr(selection, "CHUNK_ENTRIES", 1)
    made = random_dictionary(case, 5)
    assert_is_the_dense_loss(case, made, random_rows(made.sites, 5))


@pytest.mark.parametrize("dead", [0, 1, K_AUX - 1, F])
@pytest.mark.parametrize("case", **named(WITH_AUXK))
def test_auxk_is_its_equation_with_any_number_of_dead_latents(case, dead):
    weight = {"terms": {"auxk": 2.0}} if case in PENALISED else {"aux_weight": 2.0}
    made = random_dictionary(case, 3, dead=dead, **weight)
    assert_is_the_dense_loss(case, made, random_rows(made.sites, 3))


def test_auxk_is_zero_when_nothing_is_dead_and_gone_with_weight_zero():
    case = find_case("topk")
    alive, off = random_dictionary(case, 1, dead=0), random_dictionary(case, 1, dead=9, aux_weight=0)
    rows = random_rows(alive.sites, 1)
    assert loss_of(alive, rows).sums["aux"] == 0
    torch.testing.assert_close(loss_of(off, rows).loss, loss_of(alive, rows).loss)


@pytest.mark.parametrize("case", **named([find_case("topk"), find_case("abs_topk"), find_case("transcoder")]))
def test_auxk_gives_dead_latents_a_gradient_that_they_do_not_have_without(case):
    made, off = random_dictionary(case, 2, dead=0), random_dictionary(case, 2, dead=0, aux_weight=0)
    rows = random_rows(made.sites, 2)
    silent = loss_of(off, rows).fired_F <= 2
    unused = off.encode(rows.x_BD).dense()[:, silent].abs().sum(1) == 0  # rows in which none of these is chosen
    rows = RawRows(rows.x_BD[unused], rows.y_BO[unused])
    made.rows_since_fired_F[silent] = made.config.dead_after_rows
    found, found_off = (gradients(m, loss_of(m, rows).loss)["W_dec"][silent] for m in (made, off))
    assert found.any()
    assert not found_off.any()


@pytest.mark.parametrize(("name", "half"), [("topk", 3), ("transcoder", 2), ("crosscoder_batch_topk", 6)])
def test_auxk_of_half_the_reconstructed_width_is_the_default(name, half):
    by_default, chosen = (random_dictionary(find_case(name), 4, k_aux=k) for k in (None, half))
    rows = random_rows(chosen.sites, 4)
    assert torch.equal(loss_of(by_default, rows).loss, loss_of(chosen, rows).loss)


def test_the_terms_of_a_loss_are_logged_by_name():
    made = random_dictionary(find_case("gated"), 0)
    sums = loss_of(made, random_rows(made.sites, 0)).sums
    total = sums["reconstruction"] + sums["gate_error"] + made.code.coefficient * sums["sparsity"]
    torch.testing.assert_close(total, loss_of(made, random_rows(made.sites, 0)).loss.detach())
