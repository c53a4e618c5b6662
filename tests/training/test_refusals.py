"""What cannot be made is refused in one line that names the option and what to change."""

from collections.abc import Callable

import pytest
import torch
from training_cases import B, F, default_case, find_case, random_rows, sites_of, untrained

from lexray.storage.errors import UserError
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config, make_dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics


def refusal(attempt: Callable[[], object]) -> str:
    """The line with which an attempt is refused."""
    with pytest.raises(UserError) as error:
        attempt()
    text = str(error.value)
    assert "\n" not in text
    return text


WIDE = {"width": 30, "target_l0": 5}
OPTIONS = [
    ({"architecture": "topk", "target_l0": 31}, "target_l0: 31 must be at most the width 30"),
    ({"architecture": "relu", "target_l0": 0}, "target_l0: 0 must be above 0"),
    ({"architecture": "relu", "width": 0}, "width: 0 must be at least 1"),
    ({"architecture": "topk", "target_l0": 2.5}, "target_l0: 2.5 is not a whole number, and topk keeps k latents"),
    ({"architecture": "transcoder", "target_l0": 2.5}, "and topk keeps k latents"),
    ({"architecture": "topk", "aux_weight": -1}, "aux_weight: -1 must be at least 0"),
    ({"architecture": "topk", "k_aux": 0}, "k_aux: 0 must be at least 1: aux_weight 0 switches AuxK off"),
    ({"architecture": "topk", "k_start": 4}, "k_start: 4 must be from target_l0 5 to the width 30"),
    ({"architecture": "topk", "k_start": 31}, "k_start: 31 must be from target_l0 5 to the width 30"),
    ({"architecture": "topk", "k_anneal": 0}, "k_anneal: 0 must be above 0 and at most 1"),
    ({"architecture": "topk", "dead_after_rows": 0}, "dead_after_rows: 0 must be at least 1"),
    ({"architecture": "topk", "sample_rows": 0}, "sample_rows: 0 must be at least 1"),
    ({"architecture": "topk", "resample_every_rows": -1}, "resample_every_rows: -1 must be at least 0"),
    ({"architecture": "batch_topk", "threshold_decay": 1}, "threshold_decay: 1 must be at least 0 and below 1"),
    ({"architecture": "relu", "initial_coefficient": 0}, "initial_coefficient: 0 must be above 0"),
    ({"architecture": "relu", "coefficient_warmup": 1}, "coefficient_warmup: 1 must be at least 0 and below 1"),
    ({"architecture": "relu_tanh", "tanh_scale": 0}, "tanh_scale: 0 must be above 0"),
    ({"architecture": "p_anneal", "p_end": 0}, "p_end: 0 must be above 0 and at most 1"),
    ({"architecture": "p_anneal", "p_from": 0.9}, "p_from: 0.9 must be below p_until 0.6"),
    ({"architecture": "gated_p_anneal", "p_jumps": 0}, "p_jumps: 0 must be at least 1"),
    ({"architecture": "jumprelu", "bandwidth": 0}, "bandwidth: 0 must be above 0"),
    ({"architecture": "jumprelu", "preact_weight": -1}, "preact_weight: -1 must be at least 0"),
    ({"architecture": "jumprelu", "initial_l0": 31}, "initial_l0: 31 must be at most the width 30"),
    ({"architecture": "jumprelu", "l0_loss": "steep"}, "l0_loss: 'steep' is not one of quadratic, step, tanh"),
    ({"architecture": "group_max", "target_l0": 4}, "target_l0: the width 30 is not a multiple of 4 groups"),
    ({"architecture": "group_max", "k_start": 10}, "k_start: group_max has one latent of each of target_l0 groups"),
    ({"architecture": "matryoshka_batch_topk", "prefixes": [0.5, 2]}, "prefixes: [0.5, 2.0] must be shares above 0"),
    ({"architecture": "matryoshka_batch_topk", "prefixes": [0.5, 0.25]}, "prefixes: [0.5, 0.25] must rise"),
    ({"architecture": "matryoshka_batch_topk", "random_power": 0}, "random_power: 0 must be above 0"),
    ({"architecture": "mp", "target_l0": 2.5}, "target_l0: 2.5 is not a whole number of rounds; give `rounds`"),
    ({"architecture": "mp", "rounds": 0}, "rounds: 0 must be at least 1"),
    ({"architecture": "mp", "residual_threshold": -1}, "residual_threshold: -1 must be at least 0"),
    ({"architecture": "mp", "decoder_norm": "free"}, "decoder_norm: matching pursuit needs unit atoms"),
    ({"architecture": "omp", "decoder_norm": "ignored"}, "decoder_norm: ignored has no place in orthogonal pursuit"),
    ({"architecture": "archetypal", "candidates": 0}, "candidates: 0 must be at least 1"),
    ({"architecture": "archetypal", "sample_rows": 29}, "candidates: 30 are more than the 29 rows"),
    ({"architecture": "relaxed_archetypal", "relaxation": 0}, "without it the name is archetypal"),
    ({"architecture": "transcoder", "encoder_init": "tied"}, "encoder_init: a transcoder reads another site"),
    (
        {"architecture": "crosscoder", "decoder_norm": "ignored", "code_norm": "mixed"},
        "code_norm: mixed does nothing, since `decoder_norm: ignored` sees no norms",
    ),
    ({"architecture": "pca", "target_l0": 2.5}, "target_l0: 2.5 is not a whole number of components"),
    ({"architecture": "pca", "normaliser": "none"}, "normaliser: none keeps the mean, which PCA does not model"),
    ({"architecture": "kmeans"}, "target_l0: 5, but k-means has one active latent; set it to 1"),
    (
        {"architecture": "kmeans", "target_l0": 1, "sample_rows": 29},
        "width: 30 latents start from a row each, but sample_rows is 29",
    ),
    ({"architecture": "snmf", "target_l0": 2.5}, "target_l0: 2.5 is not a whole number of latents"),
    ({"architecture": "snmf", "forgetting": 1}, "forgetting: 1 must be at least 0 and below 1"),
    ({"architecture": "snmf", "code_rounds": 0}, "code_rounds: 0 must be at least 1"),
    ({"architecture": "snmf", "sample_rows": 29}, "width: 30 latents start from a row each, but sample_rows is 29"),
    ({"architecture": "snmf", "atom_share": 0}, "atom_share: 0 must be above 0 and at most 1"),
    ({"architecture": "nmf", "atom_rounds": 0}, "atom_rounds: 0 must be at least 1"),
    ({"architecture": "nmf", "normaliser": "standard"}, "normaliser: standard makes activations negative for NMF"),
    ({"architecture": "top_k"}, "architecture: unknown 'top_k'; did you mean 'topk'?"),
    ({"architecture": "zzz"}, "architecture: unknown 'zzz'; known: abs_topk, archetypal, batch_topk"),
    ({"architecture": 3}, "architecture: 3 is not a name; known: abs_topk"),
    ({"architecture": "topk", "kaux": 3}, "kaux: unknown option of topk; did you mean 'k_aux'?"),
    ({"architecture": "relu", "k_start": 1}, "k_start: unknown option of relu"),
    ({"architecture": "topk", "width": "wide"}, "width: input should be a valid integer"),
    ({"architecture": "topk", "normaliser": "whitened"}, "normaliser: 'whitened' is not one of none, centre"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), OPTIONS)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(options, message):
    assert message in refusal(lambda: dictionary_config({**WIDE, **options}))


def test_a_code_that_keeps_no_whole_number_of_latents_takes_any_target():
    for name in ("transcoder", "archetypal"):
        assert dictionary_config({**WIDE, "architecture": name, "code": "jumprelu", "target_l0": 2.5}).target_l0 == 2.5


# Sites ------------------------------------------------------------------------------------------------------------

ONE, TWO, ACROSS = (sites_of(default_case(name)) for name in ("topk", "crosscoder", "transcoder"))


def attempt(sites: Sites, name: str, **options) -> Callable[[], object]:
    return lambda: make_dictionary(dictionary_config({"architecture": name, **WIDE, **options}), sites)


@pytest.mark.parametrize(
    ("tried", "message"),
    [
        (attempt(TWO, "topk"), "topk reads one site, 2 are given"),
        (attempt(ONE, "transcoder"), "transcoder reads one site and reconstructs another; only one site is given"),
        (attempt(ONE, "skip_transcoder"), "skip_transcoder reads one site and reconstructs another"),
        (attempt(ONE, "crosscoder"), "crosscoder reads several sites at once, 1 is given"),
        (attempt(ONE, "crosscoder_batch_topk"), "crosscoder_batch_topk reads several sites at once, 1 is given"),
        (attempt(ACROSS, "transcoder", normaliser="layer_norm"), "so it needs one site that is both read and"),
        (attempt(TWO, "crosscoder", normaliser="layer_norm"), "so it needs one site that is both read and"),
        (attempt(TWO, "crosscoder", normaliser="whiten"), "normaliser: whiten works on one site, 2 are given"),
        (attempt(ONE, "pca"), "width: 30, but PCA of this site has 7 components at most"),
        (attempt(ONE, "nmf"), "nmf: activations must not be negative, the site has a mean of"),
    ],
)
def test_sites_that_an_architecture_is_not_made_for_are_refused_in_one_line(tried, message):
    assert message in refusal(tried)


@pytest.mark.parametrize("name", [name for name, made in ARCHITECTURES.items() if made.kind == "sae"])
def test_a_dictionary_of_one_site_reconstructs_that_site(name):
    """A dictionary that reads one site is not silently trained against another."""
    assert f"{name}" in refusal(lambda: make_dictionary(untrained(default_case(name)).config, ACROSS))


# Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kmeans", "snmf", "archetypal", "nmf"])
def test_fewer_rows_than_starting_points_are_refused_with_both_numbers(name):
    made = untrained(default_case(name))
    rows = random_rows(made.sites, 0, B, torch.float32)
    assert f"{F} centroids are wanted of {B} rows" in refusal(lambda: made.prepare(lambda: [rows]))
    assert f"{F}" in refusal(lambda: made.config.check_rows(F - 1))
    made.config.check_rows(F)


def test_a_negative_activation_is_refused_by_nmf_where_it_appears():
    positive = Sites.same(SiteStatistics(mean=(1.0, 1.0), mean_squared_norm=3.0))
    options = {"architecture": "nmf", "width": 3, "target_l0": 1, "normaliser": "none"}
    made = make_dictionary(dictionary_config(options), positive)
    assert made.config.needs_nonnegative
    text = refusal(lambda: made.encode(torch.tensor([[1.0, 2.0], [0.5, -0.25]])))
    assert text == (
        "nmf: activations must not be negative, the site has -0.25 among its normalised values; use snmf, or "
        "signed_input: split"
    )


def test_only_nmf_needs_what_is_not_negative():
    assert [name for name in ARCHITECTURES if untrained(default_case(name)).config.needs_nonnegative] == []
    assert not untrained(find_case("nmf")).config.needs_nonnegative
