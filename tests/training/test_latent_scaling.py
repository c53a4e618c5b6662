"""Latent scaling tells shared latents, latents of one site, and two kinds of artefacts apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_cases import randomise

from lexray.storage.errors import UserError
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.measures import latent_scaling as module
from lexray.training.measures.latent_scaling import (
    DECOUPLING,
    PARTIAL,
    SHARED,
    SHRINKAGE,
    SILENT,
    SPECIFIC,
    LatentScaling,
    latent_scaling,
)
from lexray.training.measures.measure import measure
from lexray.training.objectives.forward import BatchSums

D = 8


def statistics(width: int = D) -> SiteStatistics:
    return SiteStatistics(mean=(0.0,) * width, mean_squared_norm=1.0)


def crosscoder(atoms: list[tuple[float, float]], reads: list[tuple[int, int]]) -> Dictionary:
    """Latent i reads feature `reads[i][0]` at site `reads[i][1]`, and its atom has these lengths at the two sites."""
    options = {"architecture": "crosscoder", "width": len(atoms), "target_l0": 1, "normaliser": "none"}
    made = make_dictionary(dictionary_config(options), Sites.same(statistics(), statistics()))
    with torch.no_grad():
        for parameter in (made.W_enc, made.W_dec):
            parameter.zero_()
        for latent, ((first, second), (feature, site)) in enumerate(zip(atoms, reads, strict=True)):
            made.W_enc[latent, site * D + feature] = 1
            made.W_dec[latent, feature], made.W_dec[latent, D + feature] = first, second
    return made


def rows(*, absent_at_second: tuple[int, ...] = (), absent_at_first: tuple[int, ...] = ()) -> Tensor:
    """Features are the axes, present at both sites with the same strength unless told otherwise."""
    generator = torch.Generator().manual_seed(0)
    shape = (400, D)
    code = torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
    first, second = code.clone(), code.clone()
    second[:, list(absent_at_second)] = 0
    first[:, list(absent_at_first)] = 0
    return torch.cat([first, second], 1)


def diagnose(made: Dictionary, x: Tensor) -> LatentScaling:
    return latent_scaling(made, [RawRows(part, part) for part in x.split(150)])


def test_a_latent_with_equal_atoms_is_shared_and_one_whose_feature_is_at_one_site_is_specific():
    made = crosscoder([(1, 1), (1, 0), (0, 1)], [(0, 0), (1, 0), (2, 1)])
    found = diagnose(made, rows(absent_at_second=(1,), absent_at_first=(2,)))
    assert found.verdicts == [SHARED, SPECIFIC, SPECIFIC]
    assert found.own_site_F.tolist()[1:] == [0, 1]
    torch.testing.assert_close(found.nu_error_FS[1], torch.tensor([1.0, 0.0], dtype=torch.float64))


def test_an_atom_that_is_missing_where_its_feature_is_there_is_shrinkage():
    found = diagnose(crosscoder([(1, 0)], [(0, 0)]), rows())
    assert found.verdicts == [SHRINKAGE]
    assert float(found.nu_error_FS[0, 1]) == pytest.approx(1)


def test_a_feature_that_two_latents_share_out_is_decoupling():
    found = diagnose(crosscoder([(1, 0), (0, 1)], [(0, 0), (0, 1)]), rows())
    assert found.verdicts == [DECOUPLING, DECOUPLING]
    assert float(found.nu_error_FS[0, 1]) == pytest.approx(0, abs=1e-6)
    assert float(found.nu_reconstruction_FS[0, 1]) == pytest.approx(1)


def test_a_latent_that_is_never_active_is_silent_and_one_of_unequal_atoms_partial():
    x = rows(absent_at_first=(1,))
    found = diagnose(crosscoder([(1, 0), (1, 0.5)], [(1, 0), (0, 0)]), x)
    assert found.verdicts == [SILENT, PARTIAL]
    assert found.counts() == {SILENT: 1, PARTIAL: 1}


def test_measures_of_a_crosscoder_have_its_verdicts():
    """Of six latents two are specific, one is missing where its feature is, one shared, one partial, one silent."""
    lengths = [(1, 0), (0, 1), (1, 0), (1, 1), (1, 0.5), (1, 0)]
    made = crosscoder(lengths, [(1, 0), (2, 1), (3, 0), (4, 0), (5, 0), (6, 0)])
    x = rows(absent_at_second=(1,), absent_at_first=(2, 6))
    found = measure(made, lambda: [RawRows(part, part) for part in x.split(150)]).document["latent_scaling"]
    assert found["latents"] == {SILENT: 1, SHARED: 1, PARTIAL: 1, SHRINKAGE: 1, DECOUPLING: 0, SPECIFIC: 2}
    assert found["specific_fraction"] == pytest.approx(2 / 5)
    assert found["artefact_fraction"] == pytest.approx(1 / 3)
    assert found["nu_error"] == pytest.approx(0, abs=1e-6)  # the median of 0, 0 and 1
    assert found["nu_reconstruction"] == pytest.approx(0, abs=1e-6)


def test_shares_of_no_latent_are_null_and_other_dictionaries_have_no_such_section():
    made = crosscoder([(1, 1)], [(0, 0)])
    x = rows()
    found = measure(made, lambda: [RawRows(x, x)]).document["latent_scaling"]
    assert (found["specific_fraction"], found["artefact_fraction"], found["nu_error"]) == (0, None, None)
    sae = make_dictionary(
        dictionary_config({"architecture": "topk", "width": 4, "target_l0": 1}), Sites.same(statistics())
    )
    assert "latent_scaling" not in measure(sae, lambda: [RawRows(x[:, :D], x[:, :D])]).document


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20)
def test_sums_over_active_pairs_are_those_of_whole_matrices(seed):
    """Three sites of random weights: beta as in the formula, from dense codes and targets, pairs in chunks of a few."""
    options = {"architecture": "crosscoder", "width": 10, "target_l0": 3, "normaliser": "none"}
    made = make_dictionary(dictionary_config(options), Sites.same(*[statistics(4)] * 3)).double()
    randomise(made, seed % 1000)
    x = torch.randn(20, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK_NUMBERS", 40)
        found = latent_scaling(made, [RawRows(x, x)])
    f, atoms = made.encode(x).dense().detach(), made.W_dec.detach().unflatten(1, (3, 4))
    x_hat = torch.einsum("bf,fsd->bsd", f, atoms)
    rest = (x - made.b_dec.detach()).unflatten(1, (3, 4)) - x_hat
    own = atoms.norm(dim=2).argmax(1)
    for j in range(10):
        d, targets = atoms[j, own[j]], (rest + f[:, j, None, None] * atoms[j], x_hat)
        beta, beta_r = (((f[:, j, None, None] * y).sum(0) @ d) / (d @ d * (f[:, j] ** 2).sum()) for y in targets)
        torch.testing.assert_close(found.nu_error_FS[j], beta / beta[own[j]], equal_nan=True)
        torch.testing.assert_close(found.nu_reconstruction_FS[j], beta_r / beta_r[own[j]], equal_nan=True)


def test_the_result_does_not_depend_on_how_rows_are_cut_into_batches():
    made, x = crosscoder([(1, 1), (1, 0)], [(0, 0), (1, 0)]), rows()
    whole, parts = latent_scaling(made, [RawRows(x, x)]), diagnose(made, x)
    torch.testing.assert_close(whole.nu_reconstruction_FS, parts.nu_reconstruction_FS)


def test_dictionaries_of_one_site_and_sites_of_unequal_width_are_refused():
    options = {"width": 4, "target_l0": 1}
    sae = make_dictionary(dictionary_config({"architecture": "topk", **options}), Sites.same(statistics()))
    with pytest.raises(UserError, match="compares sites, and topk reconstructs only one"):
        latent_scaling(sae, [])
    config = dictionary_config({"architecture": "crosscoder", **options})
    unequal = make_dictionary(config, Sites.same(statistics(4), statistics(6)))
    with pytest.raises(UserError, match=r"across sites of one width, these have \[4, 6\]"):
        latent_scaling(unequal, [])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["crosscoder", "crosscoder_batch_topk"])
def test_planted_features_are_told_apart_after_training(architecture):
    """Two sites with 12 shared features, 4 of the first and 4 of the second alone, found by a trained crosscoder."""
    generator = torch.Generator().manual_seed(1)
    shared, private, width = 12, 4, 32
    features = torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
    num_features = shared + 2 * private
    code = (0.5 + torch.rand(6000, num_features, generator=generator)) * (
        torch.rand(6000, num_features, generator=generator) < 0.1
    )
    at_first, at_second = torch.ones(num_features), torch.ones(num_features)
    at_second[shared : shared + private], at_first[shared + private :] = 0, 0
    x = torch.cat([(code * at) @ features[:num_features] for at in (at_first, at_second)], 1)
    sites = [
        SiteStatistics(mean=tuple(p.mean(0).tolist()), mean_squared_norm=float(p.square().sum(1).mean()))
        for p in x.split(width, 1)
    ]
    options = {"architecture": architecture, "width": 24, "target_l0": 2, "dead_after_rows": 20_000}
    made = make_dictionary(dictionary_config(options), Sites.same(*sites))
    train(made, x)
    found = diagnose(made, x)
    verdicts = found.counts()
    assert verdicts.get(SHARED, 0) >= shared - 1, verdicts
    assert verdicts.get(SPECIFIC, 0) >= 2 * private - 2, verdicts
    for own, sign in ((0, slice(shared, shared + private)), (1, slice(shared + private, None))):
        atoms = made.atoms_FD().unflatten(1, (2, width))[:, own]
        latents = [i for i, v in enumerate(found.verdicts) if v == SPECIFIC and int(found.own_site_F[i]) == own]
        cosines = torch.nn.functional.normalize(atoms[latents], dim=1) @ features[:num_features][sign].T
        assert (cosines.amax(1) > 0.9).all()


def train(made: Dictionary, x: Tensor, steps: int = 1500, batch: int = 500) -> None:
    adam = torch.optim.Adam(made.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(2)
    for step in range(steps):
        adam.param_groups[0]["lr"] = 5e-3 * min(1.0, 3 * (steps - step) / steps)
        made.at_step(step, steps)
        terms = made.loss(x[torch.randint(len(x), (batch,), generator=generator)], batch)
        adam.zero_grad()
        terms.loss.backward()
        adam.step()
        sums = {name: float(value) for name, value in terms.sums.items()}
        made.after_step(BatchSums(batch, sums, terms.fired_F, terms.observed))
