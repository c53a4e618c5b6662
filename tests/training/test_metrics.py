"""Held-out metrics: their fixed points, a case done by hand, and no dependence on how rows are cut."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_synthetic import on_two_ranks

from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.measures.metrics import evaluate
from lexray.training.objectives.forward import BatchSums

ROWS = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) + torch.arange(5.0)


def untrained(name: str, rows: Tensor, *, width: int, k: int) -> Dictionary:
    """An untrained dictionary over a site with these rows."""
    x = rows.double()
    site = SiteStatistics(mean=tuple(x.mean(0).tolist()), mean_squared_norm=float(x.square().sum(1).mean()))
    config = dictionary_config({"architecture": name, "width": width, "target_l0": k})
    return make_dictionary(config, Sites.same(site))


def raw(*batches: Tensor) -> list[RawRows]:
    """Batches of rows that are read and reconstructed."""
    return [RawRows(x_BD, x_BD) for x_BD in batches]


def perfect(rows: Tensor) -> Dictionary:
    """Atoms along the axes in both directions, all of which may be active: nothing is lost."""
    width = rows.shape[1]
    made = untrained("topk", rows, width=2 * width, k=width)
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    made.load_state_dict({**made.state_dict(), "W_enc": both, "W_dec": both})
    return made


def mean_only(rows: Tensor) -> Dictionary:
    """No latent is ever active."""
    made = untrained("topk", rows, width=8, k=3)
    made.load_state_dict({**made.state_dict(), "W_enc": torch.zeros(8, rows.shape[1])})
    return made


def test_predicting_the_mean_of_the_rows_gives_fvu_one():
    metrics = evaluate(mean_only(ROWS), raw(ROWS))
    assert metrics["fvu"] == pytest.approx(1, abs=1e-6)
    assert metrics["explained_variance"] == pytest.approx(0, abs=1e-5)
    assert metrics["l0"] == 0


def test_a_perfect_reconstruction_gives_fvu_zero():
    metrics = evaluate(perfect(ROWS), raw(ROWS))
    assert metrics["fvu"] == pytest.approx(0, abs=1e-10)
    assert metrics["explained_variance"] == pytest.approx(1, abs=1e-6)
    assert metrics["l0"] == 5


def test_predicting_another_mean_than_that_of_the_rows_gives_fvu_above_one():
    assert evaluate(mean_only(ROWS), raw(ROWS + 1))["fvu"] > 1.5


def test_a_small_case_gives_the_numbers_worked_out_by_hand():
    """Site mean (1, 1), scale 1, one latent of two along each axis.

    Rows less the mean: (2, 0), (1, 3), (0, -1); largest positive entries 2, 3, none. Errors: 0, 1, 1. Squared
    distances from the site's mean: 4, 10, 1; sum of the rows less the mean (3, 2), so about their own mean the sum of
    squares is 15 - 13 / 3 = 32 / 3. Explained: 1, 1 - 1 / 10, 1 - 1 / 1.
    """
    rows = torch.tensor([[3.0, 1.0], [2.0, 4.0], [1.0, 0.0]])
    config = dictionary_config({"architecture": "topk", "width": 2, "target_l0": 1, "dead_after_rows": 10})
    made = make_dictionary(config, Sites.same(SiteStatistics(mean=(1.0, 1.0), mean_squared_norm=3.0)))
    made.load_state_dict({**made.state_dict(), "W_enc": torch.eye(2), "W_dec": 4 * torch.eye(2)})
    made.after_step(BatchSums(rows=10, sums={}, fired_F=torch.tensor([0, 3]), observed={}))
    metrics = evaluate(made, raw(rows))
    assert metrics == {
        "fvu": pytest.approx(2 / (32 / 3)),
        "explained_variance": pytest.approx(1.9 / 3),
        "l0": pytest.approx(2 / 3),
        "dead_fraction": 0.0,
        "dead_in_training": 0.5,
        "rows": 3,
    }


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12))
@settings(max_examples=25)
def test_metrics_do_not_depend_on_how_rows_are_cut_into_batches(sizes):
    made = untrained("topk", ROWS, width=12, k=3)
    cuts = [min(sum(sizes[:i]), len(ROWS)) for i in range(len(sizes) + 1)] + [len(ROWS)]
    batches = [ROWS[start:stop] for start, stop in itertools.pairwise(cuts) if stop > start]
    assert evaluate(made, raw(*batches)) == pytest.approx(evaluate(made, raw(ROWS)), rel=1e-6)


@pytest.mark.parametrize("cut", [0, 1, 77, 200])
def test_metrics_do_not_depend_on_how_rows_are_dealt_to_ranks(cut):
    made, parts = untrained("topk", ROWS, width=12, k=3), (ROWS[:cut], ROWS[cut:])
    both = on_two_ranks(lambda rank, axes: evaluate(made, raw(parts[rank]) if len(parts[rank]) else [], axes.rows))
    assert both[0] == both[1] == pytest.approx(evaluate(made, raw(ROWS)), rel=1e-6)


def test_large_values_far_from_the_site_mean_lose_no_precision():
    """Sums are taken about the site's mean: those of 300,000 rows at 1000 +- 1 would cancel."""
    rows = 1000 + ROWS[:, :2].repeat(1500, 1)
    made = mean_only(rows)
    assert evaluate(made, raw(*rows.split(4096)))["fvu"] == pytest.approx(1, abs=1e-8)


def test_a_huge_row_does_not_swallow_the_small_ones_that_follow_it():
    """Sums are taken in float64."""
    made, small, huge = untrained("topk", ROWS, width=12, k=3), list(ROWS.split(1)) * 5, 3e4 + ROWS[:1]
    assert evaluate(made, raw(huge, *small)) == pytest.approx(evaluate(made, raw(*small, huge)), rel=1e-9)


@pytest.mark.parametrize("name", ["topk", "batch_topk", "relu"])
def test_bfloat16_rows_are_measured_as_the_values_they_hold(name):
    made, stored = untrained(name, ROWS, width=12, k=3), ROWS.bfloat16()
    assert evaluate(made, raw(stored)) == pytest.approx(evaluate(made, raw(stored.float())), rel=1e-6)


def test_an_evaluation_leaves_no_graph_behind():
    made = untrained("topk", ROWS, width=12, k=3)
    evaluate(made, raw(ROWS))
    assert all(p.grad is None and p.requires_grad for p in made.parameters())


# Several sites ----------------------------------------------------------------------------------------------------


def sites_of_rows(*rows: Tensor) -> list[SiteStatistics]:
    sites = [x.double() for x in rows]
    norms = [float(x.square().sum(1).mean()) for x in sites]
    return [
        SiteStatistics(mean=tuple(x.mean(0).tolist()), mean_squared_norm=norm)
        for x, norm in zip(sites, norms, strict=True)
    ]


def test_every_site_of_a_crosscoder_counts_alike_and_has_an_fvu_of_its_own():
    """Of two sites the second, a thousand times as long, is predicted by its mean: half of the whole is lost."""
    other = 1000 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    config = dictionary_config({"architecture": "crosscoder_batch_topk", "width": 10, "target_l0": 10})
    made = make_dictionary(config, Sites.same(*sites_of_rows(ROWS, other)))
    one = torch.cat([torch.eye(5), -torch.eye(5)])
    both = torch.cat([one, torch.zeros(10, 3)], 1)
    made.load_state_dict({**made.state_dict(), "W_enc": both, "W_dec": both})
    metrics = evaluate(made, raw(torch.cat([ROWS, other], 1)), sites=("first", "second"))
    assert metrics["fvu/first"] == pytest.approx(0, abs=1e-6)
    assert metrics["fvu/second"] == pytest.approx(1, abs=1e-6)
    assert metrics["fvu"] == pytest.approx(0.5, abs=1e-6)
    distances = [(x - x.mean(0)).square().sum(1) for x in (ROWS.double(), other.double())]
    weighted = [d / d.mean() for d in distances]
    expected = (1 - weighted[1] / (weighted[0] + weighted[1])).mean()
    assert metrics["explained_variance"] == pytest.approx(float(expected), rel=1e-5)


def test_a_transcoder_is_measured_at_the_site_that_it_writes():
    target = 3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(2)) + 5
    read, written = sites_of_rows(ROWS, target)
    config = dictionary_config({"architecture": "transcoder", "width": 4, "target_l0": 2})
    made = make_dictionary(config, Sites(inputs=(read,), outputs=(written,)))
    made.load_state_dict({**made.state_dict(), "W_enc": torch.zeros(4, 5)})
    metrics = evaluate(made, [RawRows(ROWS, target)])
    assert metrics["fvu"] == pytest.approx(1, abs=1e-6)
    assert metrics["l0"] == 0


def test_another_number_of_active_latents_than_the_trained_one_can_be_measured():
    made = perfect(ROWS)
    values = [evaluate(made, raw(ROWS), k=k) for k in (1, 2, 5)]
    assert [value["l0"] for value in values] == [1, 2, 5]
    assert values[0]["fvu"] > values[1]["fvu"] > values[2]["fvu"] == pytest.approx(0, abs=1e-10)
