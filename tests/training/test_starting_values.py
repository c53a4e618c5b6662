"""What a training starts from is what the options say: atoms, encoders, biases, thresholds, mixtures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from training_cases import D, F, K, find_case, loss_of, random_rows, untrained

from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.archetypal import initial_mixture, onto_simplex
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.ops.sampling import geometric_median

COUNT = 400


def sample_of(made: Dictionary) -> RawRows:
    return random_rows(made.sites, 3, COUNT, torch.float32)


def prepared(name: str, **options) -> tuple[Dictionary, RawRows]:
    """A dictionary with its starting values, and the rows that they were computed from."""
    made = untrained(find_case(name), **options)
    rows = sample_of(made)
    made.prepare(lambda: [rows])
    return made, rows


# Biases -----------------------------------------------------------------------------------------------------------


def test_directions_from_the_geometric_median_to_all_rows_cancel_and_an_outlier_hardly_moves_it():
    x_BD = torch.randn(COUNT, D, generator=torch.Generator().manual_seed(1)) + 2
    like = torch.zeros(D)
    median = geometric_median(lambda: x_BD.split(150), LOCAL_DATA, like)
    assert torch.nn.functional.normalize(x_BD - median, dim=1).mean(0).norm() < 1e-4
    far = torch.cat([x_BD, torch.full((5, D), 1e4)])
    assert (geometric_median(lambda: [far], LOCAL_DATA, like) - median).norm() < 0.2
    assert (far.mean(0) - median).norm() > 100


def test_b_dec_starts_at_zero_the_mean_or_the_geometric_median_of_normalised_rows():
    made, rows = prepared("topk", normaliser="unit_norm", bias_init="geometric_median")
    x_BD = made.input.normalise(rows.x_BD)
    torch.testing.assert_close(made.b_dec.detach(), geometric_median(lambda: [x_BD], LOCAL_DATA, torch.zeros(D)))
    made, _ = prepared("topk", normaliser="unit_norm", bias_init="mean")
    site = made.sites.inputs[0]
    torch.testing.assert_close(made.b_dec.detach(), torch.tensor(site.mean) / site.mean_squared_norm**0.5)
    assert not prepared("topk", normaliser="unit_norm")[0].b_dec.any()


# Encoders and atoms -----------------------------------------------------------------------------------------------


def lengths(weight_FD: Tensor) -> Tensor:
    return weight_FD.detach().norm(dim=1)


def test_the_encoder_starts_as_the_atoms_or_as_unit_directions_of_its_own():
    tied, free = untrained(find_case("topk")), untrained(find_case("topk"), encoder_init="random")
    torch.testing.assert_close(tied.W_enc.detach(), tied.atoms_FD().detach())
    for weight in (tied.W_enc, free.W_enc, free.W_dec, untrained(find_case("transcoder")).W_enc):
        torch.testing.assert_close(lengths(weight), torch.ones(F))
    cosines = (free.W_enc * free.W_dec).sum(1).detach()
    assert cosines.abs().mean() < 0.7


def test_free_atoms_start_as_long_as_they_are_asked_to():
    made = untrained(find_case("topk"), decoder_norm="free", decoder_init_norm=0.1)
    torch.testing.assert_close(lengths(made.W_dec), torch.full((F,), 0.1))


@pytest.mark.parametrize("name", ["relu", "gated"])
def test_penalty_families_whose_latents_are_half_active_at_first_start_near_the_identity(name):
    made = untrained(find_case(name), width=2000)
    rows = sample_of(made)
    terms = loss_of(made, rows)
    assert terms.sums["active"] == pytest.approx(1000 * COUNT, rel=0.1)
    assert terms.sums["error"] < 0.1 * made.input.normalise(rows.x_BD).square().sum()


def test_crosscoders_start_with_one_direction_at_all_sites_or_with_independent_ones():
    site = SiteStatistics(mean=(0.0,) * D, mean_squared_norm=1.0)

    def parts(**options) -> list[Tensor]:
        config = dictionary_config({"architecture": "crosscoder", "width": F, "target_l0": K, **options})
        made = make_dictionary(config, Sites.same(site, site))
        return [part.detach() for part in made.site_atoms(made.atoms_FD())]

    same, independent = parts(), parts(site_init="independent")
    for first, second in (same, independent):
        torch.testing.assert_close(lengths(first) + lengths(second), torch.ones(F))
    assert torch.equal(*same)
    cosines = torch.nn.functional.cosine_similarity(*independent)
    assert cosines.abs().mean() < 0.7


# Thresholds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "l0"), [({}, 2 * K), ({"initial_l0": 3}, 3)])
def test_jumprelus_thresholds_start_where_as_many_latents_are_active_as_is_asked(options, l0):
    made, rows = prepared("jumprelu", width=200, **options)
    active_F = made.encode(rows.x_BD).fired()
    assert float(active_F.sum()) / COUNT == pytest.approx(l0, rel=0.15)
    each = l0 * COUNT / 200
    assert active_F.max() <= each  # but for the few that hardly ever point where rows are, every latent as often
    assert active_F.median() >= each - 1


# Mixtures ---------------------------------------------------------------------------------------------------------


def test_mixtures_start_at_candidates_in_their_order_or_in_another_or_between_them():
    def mixture(how: str, seed: int) -> Tensor:
        options = {"candidates": 11, "mixture_init": how, "sample_rows": COUNT}
        config = dictionary_config({"architecture": "archetypal", "width": F, "target_l0": K, **options})
        made = initial_mixture(config, seed)
        torch.testing.assert_close(made.sum(1), torch.ones(F))
        assert (made >= 0).all()
        return made

    assert torch.equal(mixture("identity", 1)[:11], torch.eye(11))
    shuffled = mixture("shuffled", 1)[:11]
    assert torch.equal(shuffled.sum(0), torch.ones(11))
    assert not torch.equal(shuffled, torch.eye(11))
    assert ((mixture("random", 1) > 0).sum(1) > 1).all()
    for how in ("shuffled", "random"):
        assert not torch.equal(mixture(how, 1), mixture(how, 2))


def test_a_mixture_is_put_back_by_dropping_what_is_negative_and_dividing_by_the_sum():
    found = onto_simplex(torch.tensor([[1.0, -5.0, 3.0], [-1.0, -2.0, 0.0], [0.5, 0.5, 0.0]]))
    expected = torch.tensor([[0.25, 0.0, 0.75], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0.0]])
    torch.testing.assert_close(found, expected)
