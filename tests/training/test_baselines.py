"""PCA, k-means and matrix factorisation against what they are defined by."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_cases import D, F, find_case, learned_from, random_dictionary, random_rows, untrained

from lexray.storage.errors import UserError
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import RawRows
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.mesh.axes import LOCAL_DATA, LOCAL_FEATURE
from lexray.training.ops.kmeans import assign, kmeans, nearest
from lexray.training.ops.kmeans import random_rows as draw_rows
from lexray.training.ops.nmf import (
    EPS,
    largest_entries,
    least_squares_atoms,
    multiplicative,
    multiplicative_atoms,
    singular_directions,
    sparse_codes,
)


def correlated(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return torch.randn(count, D, generator=generator, dtype=torch.float64) @ mixing


# PCA --------------------------------------------------------------------------------------------------------------


def taught(case: str, steps: int = 5):
    """A PCA that has seen some batches, and all their rows, normalised."""
    made = untrained(find_case(case)).double()
    batches = [correlated(200, step) for step in range(steps)]
    for step, batch in enumerate(batches):
        made.at_step(step, steps)
        made.learn(batch, len(batch))
    return made, made.input.normalise(torch.cat(batches))


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_pca_has_the_leading_eigenvectors_of_the_covariance(steps):
    """After 1, 2, 4... steps and the last."""
    made, x = taught("pca", steps)
    values, vectors = np.linalg.eigh((x.T @ x / len(x)).numpy())
    leading = vectors[:, np.argsort(-values)].T[: made.config.width]
    for atom, expected in zip(made.W_dec.numpy(), leading, strict=True):
        assert abs(atom @ expected) == pytest.approx(1, abs=1e-9)
        assert atom[np.abs(atom).argmax()] > 0


def test_pca_reconstructs_by_projection_onto_its_leading_components():
    made, _ = taught("pca")
    x = correlated(30, 99)
    code = made.encode(x)
    k = int(made.config.target_l0)
    normalised = made.input.normalise(x)
    expected = normalised @ made.W_dec[:k].T @ made.W_dec[:k]
    torch.testing.assert_close(made.input.normalise(made.decode(code)), expected)
    assert (code.active_per_row == k).all()


def test_pca_by_largest_scores_loses_no_more_than_by_leading_ones():
    leading, largest = taught("pca")[0], taught("pca-largest")[0]
    x = correlated(300, 99)
    errors = [(made(x) - x).square().sum(1) for made in (leading, largest)]
    assert (errors[1] <= errors[0] + 1e-9).all()
    assert errors[1].sum() < errors[0].sum()
    assert (largest.encode(x).values < 0).any()


def test_pca_of_all_components_loses_nothing():
    made = untrained(find_case("pca"), width=D, target_l0=D).double()
    made.learn(correlated(100, 0), 100)
    x = correlated(10, 1)
    torch.testing.assert_close(made(x), x)


# k-means ----------------------------------------------------------------------------------------------------------


def dense_distances(x: Tensor, centroids: Tensor) -> Tensor:
    return (x[:, None] - centroids[None]).square().sum(2)


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=20)
def test_rows_are_assigned_to_the_nearest_centroid_and_summed_up(count, num_centroids, seed):
    x = correlated(count, seed)
    centroids = correlated(num_centroids, seed + 1)
    distances = dense_distances(x, centroids)
    distance, which = nearest(x, centroids)
    torch.testing.assert_close(distance, distances.min(1).values)
    assert torch.equal(which, distances.argmin(1))
    found = assign(list(x.split(7)), centroids, LOCAL_DATA)
    for c in range(num_centroids):
        torch.testing.assert_close(found.sums_CD[c], x[which == c].sum(0))
        assert found.counts_C[c] == (which == c).sum()
    torch.testing.assert_close(found.farthest[0], distance.max())
    torch.testing.assert_close(found.farthest[1:], x[distance.argmax()])


def test_lloyd_s_algorithm_finds_well_separated_clusters():
    centres = torch.eye(6, dtype=torch.float64) * 10
    noise = torch.randn(600, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = centres.repeat(100, 1) + 0.1 * noise
    found = kmeans(lambda: [x], 6, LOCAL_DATA, seed=0)
    assert dense_distances(centres, found).min(1).values.max() < 0.05


def test_a_centroid_without_rows_is_put_on_the_row_that_is_farthest_from_its_own():
    x = torch.tensor([[0.0, 0.0]] * 20 + [[100.0, 0.0]])
    found = kmeans(lambda: [x], 2, LOCAL_DATA, seed=0)
    assert sorted(found[:, 0].tolist()) == pytest.approx([0.0, 100.0])


def test_drawn_rows_are_distinct_rows_of_the_data_and_others_for_another_seed():
    x = correlated(50, 0)
    drawn = draw_rows(lambda: x.split(7), 50, LOCAL_DATA, 3)
    assert sorted(drawn.tolist()) == sorted(x.tolist())
    few, other = (draw_rows(lambda: x.split(7), 5, LOCAL_DATA, seed) for seed in (1, 2))
    assert not torch.equal(few, other)


def test_kmeans_reconstructs_each_row_by_its_nearest_centroid():
    made = random_dictionary(find_case("kmeans"), 1)
    rows = random_rows(made.sites, 1)
    x = made.input.normalise(rows.x_BD)
    expected = made.W_dec[dense_distances(x, made.W_dec).argmin(1)]
    torch.testing.assert_close(made(rows.x_BD), made.input.denormalise(expected))
    assert (made.encode(rows.x_BD).active_per_row == 1).all()


def test_a_centroid_becomes_the_mean_of_all_rows_that_were_nearest_to_it():
    made = untrained(find_case("kmeans"), width=3).double()
    batches = [correlated(40, number) for number in range(3)]
    made.prepare(lambda: [RawRows(batch, batch) for batch in batches])
    sums, counts = torch.zeros(3, D, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step, batch in enumerate(batches):
        x = made.input.normalise(batch)
        which = dense_distances(x, made.W_dec).argmin(1)
        sums.index_add_(0, which, x)
        counts += torch.bincount(which, minlength=3)
        made.at_step(step, 3)
        made.learn(batch, len(batch))
        torch.testing.assert_close(made.W_dec[counts > 0], (sums / counts[:, None])[counts > 0])


# Matrix factorisation ---------------------------------------------------------------------------------------------


def objective(x: Tensor, z: Tensor, atoms: Tensor) -> float:
    return float((x - z @ atoms).square().sum())


@given(st.integers(0, 2**31), st.integers(2, 12))
@settings(max_examples=20)
def test_no_update_of_the_codes_raises_the_objective_or_makes_one_negative(seed, num_atoms):
    x, atoms = correlated(15, seed), correlated(num_atoms, seed + 1)
    affinity, gram = x @ atoms.T, atoms @ atoms.T
    before = float(x.square().sum())
    for rounds in range(6):
        z = multiplicative(affinity, gram, affinity.clamp_min(0), rounds)
        assert (z >= 0).all()
        assert objective(x, z, atoms) <= before * (1 + 1e-9)
        before = objective(x, z, atoms)


def test_updates_of_the_codes_end_at_the_best_ones():
    """Projected gradient descent finds no better ones."""
    x, atoms = correlated(15, 3), correlated(5, 4)
    gram = atoms @ atoms.T
    z = multiplicative(x @ atoms.T, gram, (x @ atoms.T).clamp_min(0) + 0.01, 2000)
    best = torch.zeros_like(z)
    for _ in range(2000):
        best = (best - (best @ gram - x @ atoms.T) / torch.linalg.matrix_norm(gram, 2)).clamp_min(0)
    assert objective(x, z, atoms) == pytest.approx(objective(x, best, atoms), rel=1e-3)


@given(st.integers(0, 2**31), st.integers(1, 4))
@settings(max_examples=20)
def test_sparse_codes_have_at_most_k_entries_none_negative_and_lose_less_than_nothing_would(seed, k):
    x, atoms = correlated(15, seed), torch.nn.functional.normalize(correlated(9, seed + 1), dim=1)
    code = sparse_codes(x, atoms, k, 10, LOCAL_FEATURE)
    z = code.dense()
    assert code.chosen.offsets.diff().tolist() == [k] * 15
    assert (z >= 0).all()
    assert ((x - z @ atoms).square().sum(1) <= x.square().sum(1) * (1 + 1e-9)).all()


def test_chosen_entries_are_fitted_alone():
    """With orthonormal atoms the best k entries are the k largest products."""
    x, atoms = correlated(15, 0), torch.eye(D, dtype=torch.float64)
    z = sparse_codes(x, atoms, 2, 50, LOCAL_FEATURE).dense()
    positive = x.clamp_min(0)
    kept = torch.zeros_like(x).scatter(1, positive.topk(2, dim=1).indices, 1.0)
    torch.testing.assert_close(z, positive * kept, rtol=1e-4, atol=1e-4)


def test_least_squares_atoms_are_the_best_ones_and_unused_ones_stay():
    z, x = correlated(40, 1).clamp_min(0)[:, :5], correlated(40, 2)
    z[:, 3] = 0
    before = correlated(5, 3)
    atoms = least_squares_atoms(z.T @ z, z.T @ x, before, ridge=1e-9)
    used = [0, 1, 2, 4]
    best = np.linalg.lstsq(z[:, used].numpy(), x.numpy(), rcond=None)[0]
    np.testing.assert_allclose(atoms[used].numpy(), best, atol=1e-5)
    torch.testing.assert_close(atoms[3], before[3])


@given(st.integers(0, 2**31))
@settings(max_examples=20)
def test_no_update_of_nmf_s_atoms_raises_the_objective_or_makes_one_negative(seed):
    z, x, atoms = (correlated(rows, seed + n).abs() for n, rows in enumerate((30, 30, 5)))
    z = z[:, :5]
    before = objective(x, z, atoms)
    for _ in range(5):
        atoms = multiplicative_atoms(z.T @ z, z.T @ x, atoms, 1)
        assert (atoms >= 0).all()
        assert objective(x, z, atoms) <= before * (1 + 1e-9) + EPS
        before = objective(x, z, atoms)


@pytest.mark.parametrize("name", ["snmf", "nmf"])
def test_learning_makes_the_factorisation_better_with_unit_factors(name):
    made = untrained(find_case(name), forgetting=0.9).double()
    truth = torch.nn.functional.normalize(correlated(12, 7), dim=1)

    def rows(seed: int) -> RawRows:
        generator = torch.Generator().manual_seed(seed)
        z = torch.rand(300, 12, generator=generator, dtype=torch.float64)
        x = z * (torch.rand(300, 12, generator=generator) < 0.2) @ truth
        return RawRows(x, x)

    batches = [rows(seed) for seed in range(15)]
    made.prepare(lambda: batches[:2])
    losses = [float(made.learn(batch.x_BD, 300).loss) for batch in batches]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])
    factors = made.get_buffer("factors")
    torch.testing.assert_close(factors.norm(dim=1), torch.ones(F, dtype=torch.float64))
    if name == "nmf":
        assert (factors >= 0).all()
        torch.testing.assert_close(made.W_dec, factors[:, :D] - factors[:, D:])


def test_winners_are_the_largest_entries_of_each_atom_the_first_of_equal_ones():
    atoms = torch.tensor([[1.0, -3.0, 2.0, 0.5], [1.0, -1.0, 1.0, 1.0]])
    expected = torch.tensor([[0.0, -3.0, 2.0, 0.0], [1.0, -1.0, 0.0, 0.0]])
    torch.testing.assert_close(largest_entries(atoms, 2), expected)


def test_semi_nmf_with_winners_keeps_so_many_entries_of_the_least_squares_atoms():
    """One step by hand: the atoms after it are those of the sums, cut to 3 of 7 entries and of unit length."""
    made = untrained(find_case("snmf-winners"), forgetting=0.0).double()
    rows = random_rows(made.sites, 3, 200)
    made.prepare(lambda: [rows])
    before, z_BF = made.get_buffer("factors").clone(), made.encode(rows.x_BD).dense()
    made.learn(rows.x_BD, 200)
    x_BD = made.input.normalise(rows.x_BD)
    whole = least_squares_atoms(z_BF.T @ z_BF, z_BF.T @ x_BD, before)
    kept = whole * (whole.abs() >= whole.abs().sort(dim=1, descending=True).values[:, 2:3])
    torch.testing.assert_close(made.W_dec, torch.nn.functional.normalize(kept, dim=1))
    assert ((made.W_dec != 0).sum(1) == 3).all()


def groups_of_neurons() -> tuple[Tensor, Tensor]:
    """Four atoms, each of three neurons of its own out of twelve, and 600 rows of all of them with positive codes."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4, 3, generator=generator, dtype=torch.float64).sign() * torch.tensor([1.0, 0.8, 0.6])
    atoms = torch.nn.functional.normalize(torch.block_diag(*values.split(1)), dim=1)
    codes = -torch.rand(600, 4, generator=generator, dtype=torch.float64).log()
    return atoms, codes @ atoms


@pytest.mark.parametrize("atom_init", ["random", "svd", "kmeans"])
def test_the_paper_s_form_finds_groups_of_neurons_whose_codes_are_dense(atom_init):
    atoms, x = groups_of_neurons()
    options = {"width": 4, "target_l0": 4, "atom_share": 0.25, "atom_init": atom_init, "normaliser": "none"}
    config = dictionary_config({"architecture": "snmf", "sample_rows": 600, "code_rounds": 20, **options})
    made = make_dictionary(config, Sites.same(SiteStatistics(mean=(0.0,) * 12, mean_squared_norm=1.0))).double()
    made.prepare(lambda: [RawRows(x, x)])
    for _ in range(40):
        made.learn(x, len(x))
    assert ((made.W_dec != 0).sum(1) == 3).all()
    assert (made.W_dec @ atoms.T).max(0).values.min() > 0.99


def test_singular_directions_are_those_of_the_rows_with_the_sign_that_explains_more():
    x = correlated(300, 4) + 0.5
    found = singular_directions(lambda: x.split(100), 3, LOCAL_DATA)
    expected = torch.linalg.svd(x, full_matrices=False).Vh[:3]
    torch.testing.assert_close((found * expected).sum(1).abs(), torch.ones(3, dtype=torch.float64))
    projected = x @ found.T
    assert (projected.clamp_min(0).square().sum(0) >= projected.clamp_max(0).square().sum(0)).all()


def test_more_atoms_than_singular_vectors_are_refused():
    with pytest.raises(UserError, match="atom_init: svd has 7 singular vectors at this site, fewer than the width 30"):
        untrained(find_case("snmf"), atom_init="svd")


@pytest.mark.parametrize("forgetting", [0.0, 0.5])
def test_sums_over_earlier_batches_fade_at_the_rate_that_is_asked_for(forgetting):
    """Of sum f^T f up to the lengths of atoms, which codes take: its entries over the roots of its diagonal."""
    made = learned_from(untrained(find_case("snmf"), forgetting=forgetting).double(), 0)
    x_BD = random_rows(made.sites, 77, 60).x_BD
    z_BF = made.encode(x_BD).dense()
    expected_FF = forgetting * made.sum_zz_FF + z_BF.T @ z_BF
    made.learn(x_BD, len(x_BD))

    def without_lengths(sum_FF: Tensor) -> Tensor:
        return sum_FF / (sum_FF.diag().sqrt()[:, None] * sum_FF.diag().sqrt()).clamp_min(1e-12)

    torch.testing.assert_close(without_lengths(made.sum_zz_FF), without_lengths(expected_FF))


def test_nmf_of_positive_rows_has_positive_atoms_and_positive_reconstructions():
    made = untrained(find_case("nmf")).double()
    assert made.config.signed_input == "split"
    x = made.input.normalise(correlated(10, 0))
    torch.testing.assert_close(made.to_factor(x)[:, :D] - made.to_factor(x)[:, D:], x)
    assert (made.to_factor(x) >= 0).all()
