"""Input normalisers: their stated statistics, and that each is undone."""

import pytest
import torch
from torch import Tensor

from lexray.training.dictionaries.normalisers import Normaliser, Sites, SiteStatistics
from lexray.training.mesh.axes import LOCAL_DATA

ALL = ("none", "centre", "unit_norm", "standard", "layer_norm", "whiten")
WIDTH = 6


def correlated_rows(count: int = 500, width: int = WIDTH, seed: int = 0) -> Tensor:
    """Rows with a mean and with correlated dimensions of several sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator, dtype=torch.float64)
    rows = torch.randn(count, width, generator=generator, dtype=torch.float64) @ mixing
    return rows * torch.logspace(-0.3, 0.3, width, dtype=torch.float64) + torch.arange(width) - 2.0


def statistics(rows: Tensor) -> SiteStatistics:
    return SiteStatistics(mean=tuple(rows.mean(0).tolist()), mean_squared_norm=float(rows.square().sum(1).mean()))


def fitted(kind: str, *sites: Tensor) -> Normaliser:
    made = Normaliser(kind, [statistics(rows) for rows in sites]).double()  # type: ignore[arg-type]
    if made.needs_sample:
        made.fit(torch.cat(sites, 1).split(77), LOCAL_DATA)
    return made


@pytest.mark.parametrize("kind", ALL)
def test_denormalising_undoes_normalising(kind):
    rows = correlated_rows()
    made = fitted(kind, rows)
    frame = made.frame(rows)
    torch.testing.assert_close(made.denormalise(made.normalise(rows), frame), rows, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(made.normalise(rows), made.normalise(rows, frame), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "layer_norm"])
def test_the_normalised_mean_is_the_mean_of_normalised_rows(kind):
    rows = correlated_rows()
    made = fitted(kind, rows)
    torch.testing.assert_close(made.normalised_mean_D, made.normalise(rows).mean(0), rtol=1e-5, atol=1e-6)


def test_none_leaves_rows_as_they_are():
    rows = correlated_rows()
    assert torch.equal(fitted("none", rows).normalise(rows), rows)


def test_centre_subtracts_the_mean_and_nothing_else():
    rows = correlated_rows()
    torch.testing.assert_close(fitted("centre", rows).normalise(rows), rows - rows.mean(0), rtol=0, atol=1e-6)


def test_unit_norm_gives_a_mean_squared_norm_of_one_and_keeps_directions():
    rows = correlated_rows()
    normalised = fitted("unit_norm", rows).normalise(rows)
    assert float(normalised.square().sum(1).mean()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(normalised * rows.square().sum(1).mean().sqrt(), rows, rtol=1e-6, atol=0)


def test_standard_gives_mean_zero_and_total_variance_one():
    rows = correlated_rows()
    normalised = fitted("standard", rows).normalise(rows)
    assert normalised.mean(0).abs().max() < 1e-6
    assert float(normalised.square().sum(1).mean()) == pytest.approx(1, abs=1e-6)


def test_layer_norm_gives_every_row_mean_zero_and_length_one():
    rows = correlated_rows()
    normalised = fitted("layer_norm", rows).normalise(rows)
    assert normalised.mean(1).abs().max() < 1e-12
    torch.testing.assert_close(normalised.norm(dim=1), torch.ones(500, dtype=torch.float64), rtol=1e-4, atol=0)
    deviation = rows.std(1, correction=0, keepdim=True) * WIDTH**0.5
    torch.testing.assert_close(normalised, (rows - rows.mean(1, keepdim=True)) / deviation)


def test_layer_norm_survives_a_constant_row():
    made = fitted("layer_norm", correlated_rows())
    row = torch.full((1, WIDTH), 3.0, dtype=torch.float64)
    assert not made.normalise(row).any()
    torch.testing.assert_close(made.denormalise(made.normalise(row), made.frame(row)), row)


def test_whitening_gives_uncorrelated_dimensions_of_equal_variance_one_in_total():
    rows = correlated_rows()
    normalised = fitted("whiten", rows).normalise(rows)
    covariance = normalised.T @ normalised / len(rows)
    torch.testing.assert_close(covariance, torch.eye(WIDTH).double() / WIDTH, rtol=0, atol=1e-3 / WIDTH)
    assert float(normalised.square().sum(1).mean()) == pytest.approx(1, abs=1e-3)


def test_whitening_does_not_blow_up_a_dimension_without_variance_and_is_undone_there_too():
    rows = correlated_rows()
    rows[:, 2] = 1.5
    made = fitted("whiten", rows)
    normalised = made.normalise(rows)
    assert normalised.isfinite().all()
    assert normalised.abs().max() < 10
    torch.testing.assert_close(made.denormalise(normalised), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["none", "centre", "unit_norm", "standard"])
def test_sites_side_by_side_are_normalised_each_as_if_alone(kind):
    first, second = correlated_rows(seed=1), 100 * correlated_rows(width=4, seed=2)
    both = fitted(kind, first, second).normalise(torch.cat([first, second], 1))
    alone = [fitted(kind, rows).normalise(rows) for rows in (first, second)]
    torch.testing.assert_close(both, torch.cat(alone, 1))


def test_a_site_without_variance_has_a_finite_scale():
    made = Normaliser("standard", [SiteStatistics(mean=(1.0, 2.0), mean_squared_norm=5.0)])
    assert made.normalise(torch.tensor([[1.0, 2.0]])).abs().max() == 0
    assert made.normalise(torch.tensor([[1.1, 2.0]])).isfinite().all()


def test_rows_of_another_dtype_are_normalised_in_that_of_the_statistics():
    made = Normaliser("standard", [statistics(correlated_rows())])
    assert made.normalise(correlated_rows().bfloat16()).dtype == torch.float32


def test_sites_know_their_widths_and_whether_they_are_reconstructed():
    first, second = statistics(correlated_rows()), statistics(correlated_rows(width=4))
    both, across = Sites.same(first, second), Sites(inputs=(first,), outputs=(second,))
    assert (both.input_width, both.output_width, across.input_width, across.output_width) == (10, 10, 6, 4)
    assert both.reconstructs_its_input
    assert not across.reconstructs_its_input
    assert Sites.of_widths(across.widths(), reconstructs_its_input=False).output_width == 4
    assert Sites.of_widths(both.widths(), reconstructs_its_input=True).reconstructs_its_input
