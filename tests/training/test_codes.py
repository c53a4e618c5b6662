"""Codes, reconstructions, atoms and counters: what every architecture promises beside its loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from torch import Tensor
from training_cases import (
    CASES,
    DEAD_AFTER,
    DEFAULTS,
    LEARNED,
    B,
    Case,
    K,
    find_case,
    gradients,
    loss_of,
    named,
    random_dictionary,
    random_rows,
    untrained,
)
from training_dense import Problem, atoms_of, dense_loss, group_max, largest, row_topk

from lexray.training.mesh.axes import LOCAL_FEATURE
from lexray.training.objectives.forward import BatchSums
from lexray.training.ops.nonnegative import nonnegative_least_squares
from lexray.training.ops.pursuit import StopRule, orthogonal_pursuit, to_code
from lexray.training.ops.sparse_code import SparseCode

ROW_BY_ROW = ("topk", "abs_topk", "hierarchical_topk", "transcoder", "archetypal", "pca", "snmf", "nmf")
KEEPS_K = [find_case(name) for name in ROW_BY_ROW]
OVER_THE_BATCH = ("batch_topk", "matryoshka_batch_topk", "crosscoder_batch_topk")
PREDICTABLE = [case for case in LEARNED if case.code not in OVER_THE_BATCH]
"""Whose code at inference is that of training."""


# Codes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", **named(KEEPS_K))
@given(seed=st.integers(0, 2**31), count=st.integers(1, 40))
@settings(max_examples=5)
def test_exactly_k_latents_of_every_row_are_kept(case, seed, count):
    made = random_dictionary(case, seed % 100)
    code = made.encode(random_rows(made.sites, seed, count).x_BD)
    k = int(made.config.target_l0)
    assert code.chosen.offsets.diff().tolist() == [k] * count
    assert all(len(set(row.tolist())) == k for row in code.indices.view(count, k))


@pytest.mark.parametrize("case", **named(PREDICTABLE))
def test_inference_has_the_code_of_training(case):
    made = random_dictionary(case, 5)
    rows = random_rows(made.sites, 5)
    torch.testing.assert_close(made.encode(rows.x_BD).dense(), dense_loss(case, made, rows).code_BF)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", ["topk", "topk-free", "batch_topk", "matryoshka_batch_topk", "hierarchical_topk-free"])
def test_another_k_than_the_trained_one_keeps_the_k_largest_of_each_row(name, k):
    case = find_case(name)
    made = random_dictionary(case, 5)
    rows = random_rows(made.sites, 5)
    torch.testing.assert_close(made.encode(rows.x_BD, k=k).dense(), row_topk(Problem(case, made, rows), k))


def test_group_max_at_another_k_keeps_the_largest_of_its_groups():
    case = find_case("group_max-free")
    made = random_dictionary(case, 5)
    rows = random_rows(made.sites, 5)
    problem = Problem(case, made, rows)
    f = group_max(problem, K)
    torch.testing.assert_close(made.encode(rows.x_BD, k=2).dense(), f * largest(f * problem.norms, 2))
    torch.testing.assert_close(made.encode(rows.x_BD, k=99).dense(), f)


def test_matching_pursuit_at_a_residual_threshold_picks_as_many_atoms_as_each_row_needs():
    """Given at inference it is what it is as an option, and no row that may go on stops before it is reached."""
    case = find_case("mp-unit")
    made, configured = (random_dictionary(case, 0, **options) for options in ({}, {"residual_threshold": 0.4}))
    x_BD = random_rows(made.sites, 0).x_BD
    code = made.encode(x_BD, k=200, residual_threshold=0.4)
    assert torch.equal(code.dense(), configured.encode(x_BD, k=200).dense())
    residual_B = made.input.normalise(x_BD - made.decode(code) + made.input.shift_D).norm(dim=1)
    assert (residual_B < 0.4).all()
    assert len(code.active_per_row.unique()) > 2
    orthogonal = made.encode(x_BD, k=200, residual_threshold=0.4, inference="omp")
    assert orthogonal.active_per_row.sum() <= code.active_per_row.sum()


def test_orthogonal_pursuit_fits_the_atoms_it_picked_by_least_squares_that_are_not_negative():
    made, whole = random_dictionary(find_case("mp-unit"), 0), random_dictionary(find_case("omp"), 0)
    x_BD = random_rows(made.sites, 0).x_BD
    codes = [made.encode(x_BD, k=k, inference="omp").dense().detach() for k in (4, 6)]
    for code_BF in codes:
        assert (code_BF >= 0).all()
        for x_D, code_F in zip(made.input.normalise(x_BD) - made.b_dec.detach(), code_BF, strict=True):
            picked = code_F.nonzero().squeeze(1)
            best = torch.linalg.lstsq(made.atoms_FD().detach()[picked].T, x_D).solution
            torch.testing.assert_close(code_F[picked], best, rtol=1e-5, atol=1e-6)
    assert ((codes[1] != 0).sum(1) < 6).any()  # a coefficient became zero
    assert torch.equal(whole.encode(x_BD, k=6).dense(), codes[1])


def test_a_coefficient_that_a_later_pick_would_make_negative_is_left_out():
    """Rows pick the first atom, then the two axes, which explain the second row alone: its first coefficient is zero.

    Plain least squares would give it -0.1 / 0.6. The third row has no positive score with any atom.
    """
    atoms_FD = torch.tensor([[0.64, 0.48, 0.6], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    x_BD = torch.tensor([[1.0, 0.9, 0.1], [1.0, 0.9, -0.1], [-1.0, -1.0, 0.5]])
    found = [orthogonal_pursuit(x_BD, atoms_FD, StopRule(rounds), LOCAL_FEATURE) for rounds in (1, 3)]
    first, last = (to_code(*picked, 3, LOCAL_FEATURE).dense() for picked in found)
    torch.testing.assert_close(first, torch.tensor([[1.132, 0.0, 0.0], [1.012, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    sixth = 0.1 / 0.6
    expected = [[sixth, 1 - 0.64 * sixth, 0.9 - 0.48 * sixth], [0.0, 1.0, 0.9], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(last, torch.tensor(expected))


@given(seed=st.integers(0, 2**31), atoms=st.integers(1, 9))
@settings(max_examples=30)
def test_nonnegative_fits_are_those_of_scipy(seed, atoms):
    generator = torch.Generator().manual_seed(seed)
    atoms_BKD = torch.randn(20, atoms, 12, generator=generator, dtype=torch.float64) + 0.7
    x_BD = torch.randn(20, 12, generator=generator, dtype=torch.float64) + 0.3
    expected = [torch.from_numpy(nnls(a.T.numpy(), x.numpy())[0]) for a, x in zip(atoms_BKD, x_BD, strict=True)]
    affinity_BK = (atoms_BKD @ x_BD[:, :, None])[:, :, 0]
    found = nonnegative_least_squares(
        atoms_BKD @ atoms_BKD.mT, affinity_BK, torch.zeros_like(affinity_BK), torch.full((20,), 1e-10)
    )
    torch.testing.assert_close(found, torch.stack(expected))


@pytest.mark.parametrize("case", **named([case for case in DEFAULTS if untrained(case).eval_ks()]))
def test_numbers_of_active_latents_that_are_offered_are_kept(case):
    made = random_dictionary(case, 2)
    rows = random_rows(made.sites, 2)
    counts = [int(made.encode(rows.x_BD, k=k).active_per_row.max()) for k in made.eval_ks()]
    assert counts == sorted(counts)
    assert all(count <= k for count, k in zip(counts, made.eval_ks(), strict=True))
    assert made.eval_ks()[-1] == K
    assert torch.equal(made.encode(rows.x_BD, k=K).dense(), made.encode(rows.x_BD).dense())


@st.composite
def masked_matrices(draw) -> tuple[Tensor, Tensor]:
    num_rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    mask_BF = torch.rand(num_rows, width, generator=generator) < draw(st.floats(0, 1))
    return mask_BF, torch.randint(0, 3, (num_rows, width), generator=generator).float()


@given(masked_matrices())
def test_a_code_is_the_masked_matrix_it_was_made_of(matrix):
    mask_BF, values_BF = matrix
    code, expected = SparseCode.where(mask_BF, values_BF), values_BF * mask_BF
    assert torch.equal(code.dense(), expected)
    assert torch.equal(code.active_per_row, (expected != 0).sum(1))
    assert torch.equal(code.fired(), (expected != 0).sum(0))
    assert len(code.values) == len(code.indices) == len(code.rows) == mask_BF.sum()


# Reconstructions --------------------------------------------------------------------------------------------------


def raw_reconstruction(case: Case, made, code: SparseCode, x_BD: Tensor) -> Tensor:
    """What a code stands for, with whole matrices."""
    atoms, bias = made.W_dec if case.cls.Config.learns_by == "statistics" else atoms_of(case, made)[0], 0
    if hasattr(made, "b_dec"):
        bias = made.b_dec
    if hasattr(made, "W_skip"):
        bias = bias + (x_BD - made.input.mean_D) / made.input.scale_D @ made.W_skip.T
    return (code.dense() @ atoms + bias) * made.output.scale_D + made.output.shift_D


@pytest.mark.parametrize("case", **named(CASES))
def test_decoding_the_code_gives_raw_activations(case):
    made = random_dictionary(case, 3)
    x_BD = random_rows(made.sites, 3).x_BD
    code = made.encode(x_BD)
    expected = raw_reconstruction(case, made, code, x_BD)
    torch.testing.assert_close(made.decode(code, x_BD), expected)
    torch.testing.assert_close(made(x_BD), expected)
    if not hasattr(made, "W_skip"):
        torch.testing.assert_close(made.decode(code), expected)


def test_a_skip_transcoder_says_that_it_needs_the_raw_input():
    made = random_dictionary(find_case("skip_transcoder"), 3)
    with pytest.raises(ValueError, match=r"reconstructs from the code and the raw input: decode\(code, x\)"):
        made.decode(made.encode(random_rows(made.sites, 3).x_BD))


@pytest.mark.parametrize("case", **named(PREDICTABLE))
def test_training_and_inference_reconstruct_alike(case):
    made = random_dictionary(case, 5)
    rows = random_rows(made.sites, 5)
    error = ((rows.y_BO - made(rows.x_BD)) / made.output.scale_D).square().sum()
    torch.testing.assert_close(loss_of(made, rows).sums["error"], error)


@pytest.mark.parametrize("case", **named([case for case in CASES if case.cls.Config.learns_by == "statistics"]))
def test_a_baseline_reports_the_error_of_what_it_knew_before_the_batch(case):
    made = random_dictionary(case, 5)
    rows = random_rows(made.sites, 5)
    error = ((rows.x_BD - made(rows.x_BD)) / made.output.scale_D).square().sum()
    made.at_step(2, 100)  # no step at which PCA decomposes
    terms = made.learn(rows.x_BD, B)
    torch.testing.assert_close(terms.sums["error"], error)
    torch.testing.assert_close(terms.loss, error / B)


# Parameters and counters ------------------------------------------------------------------------------------------

UNIT_ATOMS = [case for case in LEARNED if hasattr(untrained(case), "W_dec") and untrained(case).config.unit_atoms]


@pytest.mark.parametrize("case", **named(UNIT_ATOMS))
def test_atoms_have_unit_norm_and_the_length_of_decoder_rows_changes_nothing(case):
    made = random_dictionary(case, 1)
    rows = random_rows(made.sites, 1)
    width = made.config.width
    torch.testing.assert_close(made.code_norms(made.atoms_FD()), torch.ones(width, dtype=torch.float64))
    before = loss_of(made, rows).loss
    lengths = torch.rand(width, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    made.load_state_dict({**made.state_dict(), "W_dec": made.W_dec * lengths})
    torch.testing.assert_close(loss_of(made, rows).loss, before)


@pytest.mark.parametrize("case", **named(UNIT_ATOMS))
def test_the_gradient_of_an_atom_has_no_part_along_it(case):
    made = random_dictionary(case, 2)
    gradient = gradients(made, loss_of(made, random_rows(made.sites, 2)).loss)["W_dec"]
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close((gradient * made.W_dec).sum(1), torch.zeros(len(gradient), dtype=torch.float64))


@pytest.mark.parametrize("case", **named(DEFAULTS))
def test_counters_are_rows_of_the_global_batch_since_a_latent_fired(case):
    made = random_dictionary(case, 0, dead=0)
    width = made.config.width
    fired = torch.zeros(width)
    fired[:5] = 2
    sums = {"active": 40.0, "sparsity": 1.0, "sparsity_next_p": 1.0}
    observed = {"smallest_kept": torch.tensor(1.0)}
    for _ in range(DEAD_AFTER // 25):
        assert not made.dead_F.any()
        made.after_step(BatchSums(25, sums, fired, observed))
    assert made.rows_since_fired_F.tolist() == [0] * 5 + [DEAD_AFTER] * (width - 5)
    assert made.dead_F.tolist() == [False] * 5 + [True] * (width - 5)
    made.after_step(BatchSums(25, sums, 1 - fired.clamp(max=1), observed))
    assert made.dead_F.sum() == 0


@pytest.mark.parametrize("case", **named(LEARNED))
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(case):
    batches = [random_rows(untrained(case).sites, number, 64, torch.float32) for number in (1, 2)]

    def state(seed: int) -> dict[str, Tensor]:
        made = untrained(case)
        made = type(made)(made.config, made.sites, seed=seed)
        made.prepare(lambda: batches)
        return made.state_dict()

    first, again, other = (state(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[key], again[key]) for key in first)
    if "mixture_FC" not in first:  # as published, archetypal atoms start at the candidates, which seeds share
        assert not torch.equal(first["W_dec"], other["W_dec"])


def test_archetypal_dictionaries_of_other_seeds_share_candidates_unless_told_otherwise():
    batches = [random_rows(untrained(find_case("archetypal")).sites, number, 64, torch.float32) for number in (1, 2)]

    def candidates(seed: int, whose: str) -> Tensor:
        made = untrained(find_case("archetypal"), candidates_seed=whose)
        made = type(made)(made.config, made.sites, seed=seed)
        made.prepare(lambda: batches)
        return made.candidates_CD

    assert torch.equal(candidates(1, "shared"), candidates(2, "shared"))
    assert not torch.equal(candidates(1, "trial"), candidates(2, "trial"))
