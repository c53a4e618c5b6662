"""Every architecture is its equations: losses, gradients, codes and counters against dense references."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_synthetic import ARCHITECTURES, ThreadRows, on_two_ranks, random_dictionary

from storage.errors import UserError
from training.axes import ALL_LATENTS, ALL_ROWS
from training.code import Code
from training.dictionaries import architecture, dictionary_config, relu
from training.dictionaries.auxk import auxk_term, residual_variance
from training.dictionaries.base import BatchSums, Dictionary, SiteStatistics, Terms

B, D, F, K = 24, 7, 30, 4
DEAD_AFTER = 100
K_AUX = 3


def rows_of(seed: int, count: int = B) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1.7 + 0.3


def dictionary_of(name: str, seed: int, *, dead: int = 9, **options) -> Dictionary:
    """A random dictionary of which `dead` latents have been silent for too long; a `relu` far from its first weight."""
    options = {"target_l0": K, "dead_after_rows": DEAD_AFTER, **options}
    if name != "relu":
        options.setdefault("k_aux", K_AUX)
    made = random_dictionary(name, width=F, site_width=D, seed=seed, **options)
    silent = torch.randperm(F, generator=torch.Generator().manual_seed(seed))[:dead]
    made.rows_since_fired_F[silent] = DEAD_AFTER
    if name == "relu":
        made.controller.log_coefficient.fill_(-1.3)
    return made


# The equations, written densely -----------------------------------------------------------------------------------


class Dense(NamedTuple):
    """A loss and what is counted, computed with whole matrices."""

    loss: Tensor
    reconstruction: Tensor
    code_BF: Tensor
    x_BD: Tensor
    error_BD: Tensor


def dense_loss(made: Dictionary, x_BD: Tensor) -> Dense:
    """The loss in the docstring of `made`'s class. Uses parameters and buffers of the module, and none of its code."""
    x_BD = (x_BD - made.mean_D) / made.scale
    z_BF = (x_BD - made.b_dec) @ made.W_enc.T + made.b_enc
    atoms_FD = made.W_dec / made.W_dec.norm(dim=1, keepdim=True)
    code_BF = DENSE_CODES[made.config.architecture](z_BF)
    error_BD = x_BD - (code_BF @ atoms_FD + made.b_dec)
    reconstruction = (error_BD**2).sum(1).mean()
    if made.config.architecture == "relu":
        loss = reconstruction + made.controller.coefficient * code_BF.sum(1).mean()
    else:
        loss = reconstruction + made.config.aux_weight * dense_auxk(made, z_BF, error_BD.detach(), atoms_FD)
    return Dense(loss, reconstruction, code_BF, x_BD, error_BD)


def largest(values: Tensor, k: int) -> Tensor:
    """One where an entry is among the k largest of its row, else zero."""
    return torch.zeros_like(values).scatter(-1, values.topk(k, dim=-1).indices, 1.0)


DENSE_CODES = {
    "relu": torch.relu,
    "topk": lambda z_BF: torch.relu(z_BF) * largest(torch.relu(z_BF), K),
    "batch_topk": lambda z_BF: torch.relu(z_BF) * largest(torch.relu(z_BF).flatten(), K * len(z_BF)).view_as(z_BF),
}


def dense_auxk(made: Dictionary, z_BF: Tensor, e_BD: Tensor, atoms_FD: Tensor) -> Tensor:
    """Gao et al. (2024), appendix A.2: the dead latents' reconstruction of the residual e, over e's own variance."""
    dead = made.rows_since_fired_F >= DEAD_AFTER
    if not dead.any():
        return torch.zeros((), dtype=z_BF.dtype)
    candidates = torch.relu(z_BF[:, dead])
    e_hat_BD = candidates * largest(candidates, min(made.config.k_aux, int(dead.sum()))) @ atoms_FD[dead]
    return ((e_BD - e_hat_BD) ** 2).sum() / ((e_BD - e_BD.mean(0)) ** 2).sum()


def gradients(made: Dictionary, loss: Tensor) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(made.parameters()))
    return {name: g for (name, _), g in zip(made.named_parameters(), found, strict=True)}


def assert_is_the_dense_loss(made: Dictionary, x_BD: Tensor) -> None:
    terms, dense = made.loss(x_BD, len(x_BD)), dense_loss(made, x_BD)
    torch.testing.assert_close(terms.loss, dense.loss)
    torch.testing.assert_close(gradients(made, terms.loss), gradients(made, dense.loss))
    torch.testing.assert_close(terms.sums["reconstruction"], dense.reconstruction)
    torch.testing.assert_close(terms.sums["error"], (dense.error_BD**2).sum())
    torch.testing.assert_close(terms.sums["variance"], (dense.x_BD**2).sum())
    assert terms.sums["active"] == (dense.code_BF > 0).sum()
    assert torch.equal(terms.fired_F, (dense.code_BF > 0).sum(0))


# Loss and gradients -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@given(seed=st.integers(0, 2**31), count=st.integers(2, 40), bias=st.sampled_from([0.0, -1.0, -3.0]))
@settings(max_examples=30)
def test_loss_gradients_and_counts_are_those_of_the_dense_equations(name, seed, count, bias):
    """With a low bias fewer than k latents of a row are positive: those that relu cuts off are not active."""
    made = dictionary_of(name, seed)
    made.load_state_dict({**made.state_dict(), "b_enc": made.b_enc + bias})
    assert_is_the_dense_loss(made, rows_of(seed, count))


@pytest.mark.parametrize("sparse_below", [-1.0, 2.0], ids=["dense path", "sparse path"])
@given(seed=st.integers(0, 2**31), bias=st.floats(-3, 1))
@settings(max_examples=30)
def test_both_paths_of_relu_are_the_dense_equations(sparse_below, seed, bias):
    made = dictionary_of("relu", seed)
    made.load_state_dict({**made.state_dict(), "b_enc": made.b_enc + bias})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relu, "SPARSE_BELOW", sparse_below)
        assert_is_the_dense_loss(made, rows_of(seed))


def test_relu_takes_the_sparse_path_once_few_latents_are_active(monkeypatch):
    taken = []
    monkeypatch.setattr(relu, "sparse_decode", lambda *args: taken.append(1) or torch.zeros(B, D))
    made = dictionary_of("relu", 0)
    made.loss(rows_of(0), B)
    assert not taken
    made.load_state_dict({**made.state_dict(), "b_enc": made.b_enc - 3})
    made.loss(rows_of(0), B)
    assert taken


@pytest.mark.parametrize("dead", [0, 1, K_AUX - 1, F])
@pytest.mark.parametrize("name", ["topk", "batch_topk"])
def test_auxk_is_its_equation_with_any_number_of_dead_latents(name, dead):
    assert_is_the_dense_loss(dictionary_of(name, 3, dead=dead, aux_weight=2.0), rows_of(3))


def test_auxk_is_zero_when_nothing_is_dead_and_gone_with_weight_zero():
    x_BD = rows_of(1)
    alive = dictionary_of("topk", 1, dead=0)
    assert alive.loss(x_BD, B).sums["aux"] == 0
    off = dictionary_of("topk", 1, dead=9, aux_weight=0)
    torch.testing.assert_close(off.loss(x_BD, B).loss, alive.loss(x_BD, B).loss)


def test_auxk_gives_dead_latents_a_gradient_that_they_do_not_have_without():
    x_BD = rows_of(2)
    made, off = dictionary_of("topk", 2, dead=0), dictionary_of("topk", 2, dead=0, aux_weight=0)
    silent = off.loss(x_BD, B).fired_F <= 1
    x_BD = x_BD[off.encode(x_BD).dense()[:, silent].sum(1) == 0]  # rows in which none of these is chosen
    made.rows_since_fired_F[silent] = DEAD_AFTER
    found, found_off = (gradients(m, m.loss(x_BD, len(x_BD)).loss)["W_dec"][silent] for m in (made, off))
    assert found.any()
    assert not found_off.any()


def test_auxk_of_half_the_site_width_is_the_default():
    x_BD = rows_of(4)
    by_default, chosen = dictionary_of("topk", 4, k_aux=None), dictionary_of("topk", 4, k_aux=D // 2)
    assert torch.equal(by_default.loss(x_BD, B).loss, chosen.loss(x_BD, B).loss)


# Finite differences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_finite_differences_agree_with_autograd(name, seed):
    """Without AuxK, whose residual is not differentiated: the next test has it."""
    made, x_BD = dictionary_of(name, seed, **({} if name == "relu" else {"aux_weight": 0})), rows_of(seed)
    found = gradients(made, made.loss(x_BD, B).loss)
    start, step = made.state_dict(), 1e-6
    start = {key: value.clone() for key, value in start.items()}
    for key, gradient in found.items():
        direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        losses = []
        for sign in (1, -1):
            made.load_state_dict({**start, key: start[key] + sign * step * direction})
            losses.append(float(made.loss(x_BD, B).loss.detach()))
        made.load_state_dict(start)
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_finite_differences_of_auxk_agree_with_autograd(seed):
    made, x_BD, residual_BD = dictionary_of("topk", seed), rows_of(seed), rows_of(seed + 100)

    def term(W_enc: Tensor, bias_F: Tensor, atoms_FD: Tensor) -> Tensor:
        return auxk_term(
            made.dead_F, x_BD, residual_BD, W_enc, bias_F, atoms_FD,
            k_aux=K_AUX, total_rows=B, latents=ALL_LATENTS, rows=ALL_ROWS,
        )  # fmt: skip

    inputs = [p.detach().clone().requires_grad_() for p in (made.W_enc, made.b_enc, made.W_dec)]
    assert torch.autograd.gradcheck(term, inputs)


def test_the_residual_of_auxk_gets_no_gradient():
    made, residual_BD = dictionary_of("topk", 0), rows_of(5).requires_grad_()
    auxk_term(
        made.dead_F, rows_of(0), residual_BD, made.W_enc, made.b_enc, made.W_dec,
        k_aux=K_AUX, total_rows=B, latents=ALL_LATENTS, rows=ALL_ROWS,
    ).backward()  # fmt: skip
    assert residual_BD.grad is None


def test_the_residual_variance_is_taken_about_the_mean_of_the_residuals():
    e_BD = rows_of(1)
    torch.testing.assert_close(residual_variance(e_BD, B, ALL_ROWS), B * e_BD.var(0, correction=0).sum())


# Rows on two ranks ------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    terms: Terms
    gradients: dict[str, Tensor]


def loss_in_two_parts(name: str, seed: int, x_BD: Tensor, cut: int, **buffers: float) -> list[Part]:
    def work(rank: int, rows: ThreadRows) -> Part:
        made = with_buffers(dictionary_of(name, seed), **buffers)
        made.rows = rows
        part_BD = x_BD[:cut] if rank == 0 else x_BD[cut:]
        terms = made.loss(part_BD, len(x_BD))
        return Part(terms, gradients(made, terms.loss))

    return on_two_ranks(work)


def with_buffers(made: Dictionary, **buffers: float) -> Dictionary:
    for name, value in buffers.items():
        made.get_buffer(name).fill_(value)
    return made


def assert_parts_are_the_whole(parts: list[Part], whole: Dictionary, x_BD: Tensor) -> None:
    terms = whole.loss(x_BD, len(x_BD))
    add = functools.partial(functools.reduce, torch.add)
    torch.testing.assert_close(add([p.terms.loss for p in parts]), terms.loss)
    for name, gradient in gradients(whole, terms.loss).items():
        torch.testing.assert_close(add([p.gradients[name] for p in parts]), gradient)
    for name, value in terms.sums.items():
        torch.testing.assert_close(add([p.terms.sums[name] for p in parts]), value)
    assert torch.equal(add([p.terms.fired_F for p in parts]), terms.fired_F)
    for name, value in terms.observed.items():
        torch.testing.assert_close(parts[0].terms.observed[name], value)
        assert torch.equal(parts[0].terms.observed[name], parts[1].terms.observed[name])


@pytest.mark.parametrize("name", ARCHITECTURES)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, B - 1))
@settings(max_examples=20)
def test_the_parts_of_two_ranks_add_up_to_the_whole(name, seed, cut):
    x_BD = rows_of(seed)
    assert_parts_are_the_whole(loss_in_two_parts(name, seed, x_BD, cut), dictionary_of(name, seed), x_BD)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0, 50.0])
def test_the_parts_add_up_whatever_the_running_threshold_is(threshold):
    x_BD = rows_of(11)
    parts = loss_in_two_parts("batch_topk", 11, x_BD, 5, threshold=threshold)
    assert_parts_are_the_whole(parts, dictionary_of("batch_topk", 11), x_BD)


def test_ranks_whose_activations_differ_in_size_share_one_threshold():
    """The larger half has nearly all of the active latents: a threshold for each rank would not."""
    x_BD = torch.cat([rows_of(1, 12) * 0.1, rows_of(2, 12) * 10])
    parts = loss_in_two_parts("batch_topk", 6, x_BD, 12)
    assert_parts_are_the_whole(parts, dictionary_of("batch_topk", 6), x_BD)
    assert parts[1].terms.sums["active"] > 4 * parts[0].terms.sums["active"]


# BatchTopK's threshold --------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), count=st.integers(1, 40), threshold=st.floats(0, 5))
def test_batch_topk_keeps_k_times_rows_whatever_its_running_threshold(seed, count, threshold):
    made, x_BD = dictionary_of("batch_topk", seed), rows_of(seed, count)
    z_BF = made.preactivations(made.normalise(x_BD))
    expected = min(K * count, int((z_BF > 0).sum()))
    terms = with_buffers(made, threshold=threshold).loss(x_BD, count)
    assert terms.sums["active"] == expected
    kept = z_BF[z_BF > 0].sort(descending=True).values[: K * count]
    assert terms.observed["smallest_kept"] == (kept[-1] if len(kept) == K * count else 0)


def test_batch_topk_keeps_an_activation_equal_to_the_smallest_kept():
    config = dictionary_config({"architecture": "batch_topk", "width": 4, "target_l0": 1})
    made = architecture("batch_topk")(config, SiteStatistics(mean=(0.0,) * 4, mean_squared_norm=1.0))
    made.load_state_dict({**made.state_dict(), "W_enc": torch.eye(4)})  # every row is its own code
    terms = made.loss(torch.tensor([[5.0, 3.0, 3.0, 0.0], [2.0, 3.0, -3.0, 0.0]]), 2)
    assert terms.observed["smallest_kept"] == 3
    assert terms.fired_F.tolist() == [1, 2, 1, 0]


def test_the_running_threshold_starts_at_the_first_smallest_kept_and_decays_from_there():
    made = dictionary_of("batch_topk", 0, threshold_decay=0.9)
    nothing = torch.zeros(F)
    for smallest, expected in ((2.0, 2.0), (3.0, 0.9 * 2.0 + 0.1 * 3.0)):
        made.after_step(BatchSums(B, {}, nothing, {"smallest_kept": torch.tensor(smallest)}))
        assert float(made.threshold) == pytest.approx(expected)


def test_batch_topk_encodes_by_its_threshold_alone():
    made, x_BD = with_buffers(dictionary_of("batch_topk", 0), threshold=0.7), rows_of(0)
    z_BF = made.preactivations(made.normalise(x_BD))
    expected = torch.where(z_BF > 0.7, z_BF, 0)
    torch.testing.assert_close(made.encode(x_BD).dense(), expected)
    torch.testing.assert_close(made.encode(x_BD[3:4]).dense(), expected[3:4])


def test_with_its_threshold_at_the_smallest_kept_inference_keeps_what_training_kept_but_that_one():
    made, x_BD = dictionary_of("batch_topk", 8), rows_of(8)
    terms = made.loss(x_BD, B)
    made.after_step(BatchSums(B, {}, terms.fired_F, terms.observed))
    assert int(made.encode(x_BD).active_per_row.sum()) == int(terms.sums["active"]) - 1


# Codes ------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**31), count=st.integers(1, 40))
def test_topk_encodes_exactly_k_latents_of_every_row(seed, count):
    made, x_BD = dictionary_of("topk", seed), rows_of(seed, count)
    code = made.encode(x_BD)
    z_BF = torch.relu(made.preactivations(made.normalise(x_BD)))
    assert code.chosen.offsets.diff().tolist() == [K] * count
    torch.testing.assert_close(code.dense(), z_BF * largest(z_BF, K))


@pytest.mark.parametrize("name", ARCHITECTURES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15)
def test_decoding_the_code_gives_raw_activations(name, seed):
    made, x_BD = dictionary_of(name, seed), rows_of(seed)
    code = made.encode(x_BD)
    normalised = code.dense() @ (made.W_dec / made.W_dec.norm(dim=1, keepdim=True)) + made.b_dec
    expected = normalised * made.scale + made.mean_D
    torch.testing.assert_close(made.decode(code), expected)
    torch.testing.assert_close(made(x_BD), expected)


@pytest.mark.parametrize("name", ["topk", "relu"])
def test_training_and_inference_reconstruct_alike(name):
    made, x_BD = dictionary_of(name, 5), rows_of(5)
    error = ((x_BD - made(x_BD)) / made.scale).square().sum()
    torch.testing.assert_close(made.loss(x_BD, B).sums["error"], error)


@st.composite
def masked_matrices(draw) -> tuple[Tensor, Tensor]:
    num_rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask_BF = torch.rand(num_rows, width, generator=generator) < draw(st.floats(0, 1))
    return mask_BF, torch.randint(0, 3, (num_rows, width), generator=generator).float()


@given(masked_matrices())
def test_a_code_is_the_masked_matrix_it_was_made_of(case):
    mask_BF, values_BF = case
    code, expected = Code.where(mask_BF, values_BF), values_BF * mask_BF
    assert torch.equal(code.dense(), expected)
    assert torch.equal(code.active_per_row, (expected != 0).sum(1))
    assert torch.equal(code.fired(), (expected != 0).sum(0))
    assert len(code.values) == len(code.indices) == len(code.rows) == mask_BF.sum()


# Parameters and counters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_atoms_have_unit_norm_and_the_length_of_decoder_rows_changes_nothing(name):
    made, x_BD = dictionary_of(name, 1), rows_of(1)
    torch.testing.assert_close(made.atoms_FD().norm(dim=1), torch.ones(F, dtype=torch.float64))
    before = made.loss(x_BD, B).loss
    lengths = torch.rand(F, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    made.load_state_dict({**made.state_dict(), "W_dec": made.W_dec * lengths})
    torch.testing.assert_close(made.loss(x_BD, B).loss, before)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_gradient_of_an_atom_has_no_part_along_it(name):
    made = dictionary_of(name, 2)
    gradient = gradients(made, made.loss(rows_of(2), B).loss)["W_dec"]
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close((gradient * made.W_dec).sum(1), torch.zeros(F, dtype=torch.float64))


def test_normalised_rows_have_mean_zero_and_variance_one():
    x_BD = rows_of(0, 500)
    mean = x_BD.mean(0)
    site = SiteStatistics(mean=tuple(mean.tolist()), mean_squared_norm=float(x_BD.square().sum(1).mean()))
    made = architecture("topk")(dictionary_config({"architecture": "topk", "width": F, "target_l0": K}), site).double()
    x_n = made.normalise(x_BD)
    assert x_n.mean(0).abs().max() < 1e-6
    assert float(x_n.square().sum(1).mean()) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(made.denormalise(x_n), x_BD)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_counters_are_rows_of_the_global_batch_since_a_latent_fired(name):
    made = dictionary_of(name, 0, dead=0)
    fired = torch.zeros(F)
    fired[:5] = 2
    observed = {"smallest_kept": torch.tensor(1.0)}
    for _ in range(DEAD_AFTER // 25):
        assert not made.dead_F.any()
        made.after_step(BatchSums(25, {"active": 40.0}, fired, observed))
    assert made.rows_since_fired_F.tolist() == [0] * 5 + [DEAD_AFTER] * (F - 5)
    assert made.dead_F.tolist() == [False] * 5 + [True] * (F - 5)
    made.after_step(BatchSums(25, {"active": 40.0}, 1 - fired.clamp(max=1), observed))
    assert made.dead_F.sum() == 0


def test_relu_hands_its_controller_the_mean_l0_of_the_global_batch():
    made = dictionary_of("relu", 0)
    before = float(made.controller.log_coefficient)
    made.after_step(BatchSums(50, {"active": 50 * 2 * float(K)}, torch.ones(F), {}))
    assert float(made.controller.batch_l0) == 2 * K
    assert float(made.controller.log_coefficient) > before
    made.after_evaluation({"l0": 3 * K})
    assert float(made.controller.log_ratio) > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name):
    config = dictionary_config({"architecture": name, "width": F, "target_l0": K})
    site = SiteStatistics(mean=(0.0,) * D, mean_squared_norm=1.0)
    first, again, other = (architecture(name)(config, site, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["W_enc"], other["W_enc"])


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "topk", "target_l0": 31}, "target_l0: 31 must be above 0 and at most the width 30"),
        ({"architecture": "relu", "target_l0": 0}, "target_l0: 0 must be above 0 and at most the width 30"),
        ({"architecture": "relu", "width": 0}, "width: 0, but a dictionary needs at least one latent"),
        ({"architecture": "topk", "target_l0": 2.5}, "target_l0: 2.5 is not a whole number, and topk keeps k latents"),
        ({"architecture": "batch_topk", "target_l0": 2.5}, "and batch_topk keeps k latents"),
        ({"architecture": "topk", "aux_weight": -1}, "aux_weight: -1 is below 0"),
        ({"architecture": "topk", "k_aux": 0}, "k_aux: 0 must be at least 1; aux_weight 0 switches AuxK off"),
        ({"architecture": "topk", "dead_after_rows": 0}, "dead_after_rows: 0 must be at least 1"),
        ({"architecture": "batch_topk", "threshold_decay": 1}, "threshold_decay: 1 must be at least 0 and below 1"),
        ({"architecture": "relu", "initial_coefficient": 0}, "initial_coefficient: 0 must be above 0"),
        ({"architecture": "top_k"}, "architecture: unknown 'top_k'; did you mean 'topk'?"),
        ({"architecture": "sparse"}, "architecture: unknown 'sparse'; known: batch_topk, relu, topk"),
        ({"architecture": "topk", "kaux": 3}, "kaux: unknown option of topk; did you mean 'k_aux'?"),
        ({"architecture": "relu", "aux_weight": 1}, "aux_weight: unknown option of relu"),
        ({"architecture": "topk", "width": "wide"}, "width: input should be a valid integer"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(UserError) as refusal:
        dictionary_config({"width": 30, "target_l0": 4, **options})
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
