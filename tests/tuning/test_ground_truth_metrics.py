"""Known worlds are what they say, and the metrics of recovery are right where the answer is known."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from lexray.training.measures.matching import match, pair_stability, random_stability
from lexray.tuning.ground_truth import worlds
from lexray.tuning.ground_truth.recovery import (
    activation_f1,
    hierarchy,
    identifiability,
    matched_cosine,
)
from lexray.tuning.ground_truth.running import Learned
from lexray.tuning.ground_truth.study import stability_of_arm
from lexray.tuning.ground_truth.worlds import WORLDS, make_world, tree, with_cosine

ROWS = 4096
PAPERS_MIXES = {0.1: (0.0895, 0.3), 0.3: (0.226, 0.529), 0.5: (0.3335, 0.6467), 0.7: (0.431, 0.733)}
"""Cosine: shares of the others that the MP-SAE paper's toy mixes into each of 3 children, and of 11 at the top."""


def directions(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def shuffled(features_GD: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return features_GD[torch.randperm(len(features_GD), generator=torch.Generator().manual_seed(seed))]


# Worlds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_is_a_function_of_its_seed_and_unseen_rows_have_the_same_features(name):
    one, again, unseen = (make_world(name, 64, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.rows_ND, again.rows_ND)
    assert not torch.equal(one.rows_ND, unseen.rows_ND)
    assert torch.equal(one.features_GD, unseen.features_GD)
    torch.testing.assert_close(one.features_GD.norm(dim=1), torch.ones(len(one.features_GD)))


@pytest.mark.parametrize("name", ["superposed", "correlated", "tree-0.5"])
def test_rows_are_the_sum_of_their_features_up_to_the_noise(name):
    world = make_world(name, ROWS, seed=0)
    left_ND = world.rows_ND - world.amplitudes_NG @ world.features_GD
    assert float(left_ND.square().mean().sqrt()) == pytest.approx(0.0 if "tree" in name else 0.02, abs=1e-3)


def test_superposed_features_are_more_than_dimensions_and_four_a_row():
    world = worlds.superposed(ROWS, seed=0)
    assert world.features_GD.shape == (96, 32)
    assert world.l0 == pytest.approx(4, rel=0.05)


def test_correlated_features_fire_with_their_group():
    present_NG = worlds.correlated(20_000, seed=0).present_NG.double()
    correlation_GG = torch.corrcoef(present_NG.T)
    same_group = torch.arange(48)[:, None] // 4 == torch.arange(48) // 4
    inside = correlation_GG[same_group & ~torch.eye(48, dtype=torch.bool)]
    assert float(inside.min()) > 0.5
    assert float(correlation_GG[~same_group].abs().max()) < 0.05


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.7])
def test_the_tree_has_the_papers_statistics(cosine):
    world = tree(50_000, seed=0, cosine=cosine)
    assert world.l0 == pytest.approx(1.36, abs=0.01)
    rates_G = world.present_NG.double().mean(0)
    for feature, parent in enumerate(world.parents):
        if parent >= 0:  # a child never without its parent, in a fifth of its rows
            assert not (world.present_NG[:, feature] & ~world.present_NG[:, parent]).any()
            assert float(rates_G[feature] / rates_G[parent]) == pytest.approx(0.2, abs=0.015)
        else:
            assert float(rates_G[feature]) == pytest.approx(0.2 if feature in world.parents else 0.05, abs=0.01)
    strengths = world.amplitudes_NG[world.present_NG]
    assert float(strengths.mean()) == pytest.approx(1.5, abs=0.01)
    assert float(strengths.std()) == pytest.approx(0.25, abs=0.01)
    for level in world.levels:  # side by side, at most one at a time
        assert int(world.present_NG[:, list(level)].sum(1).max()) == 1


@pytest.mark.parametrize("cosine", [0.0, 0.3, 0.5, 0.7])
def test_features_side_by_side_have_the_cosine_and_all_others_are_orthogonal(cosine):
    world = tree(16, seed=0, cosine=cosine)
    level_of = {feature: i for i, level in enumerate(world.levels) for feature in level}
    assert sorted(level_of) == list(range(20))
    assert [len(level) for level in world.levels] == [11, 3, 3, 3]
    expected_GG = torch.eye(20)
    for one in range(20):
        for other in range(20):
            if one != other and level_of[one] == level_of[other]:
                expected_GG[one, other] = cosine
    torch.testing.assert_close(world.features_GD @ world.features_GD.T, expected_GG, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cosine", PAPERS_MIXES)
def test_the_geometry_is_the_papers_mix_of_each_direction_with_the_others(cosine):
    for count, share in zip((3, 11), PAPERS_MIXES[cosine], strict=True):
        mixed = torch.full((count, count), share / (count - 1))
        mixed.fill_diagonal_(1 - share)
        torch.testing.assert_close(with_cosine(count, cosine), F.normalize(mixed, dim=1), atol=2e-3, rtol=0)


def test_mixtures_have_one_to_four_concepts_whose_weights_add_up_to_one():
    world = worlds.mixtures(ROWS, seed=0)
    counts = world.present_NG.sum(1)
    assert counts.unique().tolist() == [1, 2, 3, 4]
    torch.testing.assert_close(world.amplitudes_NG.sum(1), torch.ones(ROWS))


# Matching ---------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), length=st.floats(0.1, 10))
def test_a_perfect_dictionary_in_any_order_and_of_any_length_has_cosine_one(seed, length):
    features_GD = directions(12, 8, seed)
    assert matched_cosine(features_GD, length * shuffled(features_GD, seed)) == pytest.approx(1, abs=1e-5)


def test_an_atom_that_points_away_has_not_found_its_feature():
    features_GD = torch.eye(6)
    flipped = features_GD.clone()
    flipped[0] *= -1
    assert matched_cosine(features_GD, flipped) == pytest.approx(4 / 6)  # -1 of its own, or two swapped at 0


def test_one_latent_is_matched_to_one_feature_and_what_is_left_over_counts_zero():
    features_GD = torch.eye(4)
    assert matched_cosine(features_GD, features_GD[[0, 0, 0, 0]]) == pytest.approx(1 / 4)
    assert matched_cosine(features_GD, features_GD[:3]) == pytest.approx(3 / 4)
    assert matched_cosine(features_GD, torch.cat([directions(9, 4), features_GD])) == pytest.approx(1)


def test_f1_is_one_for_codes_that_are_the_truth_and_counts_misses_and_false_alarms():
    features_GD = torch.eye(3)
    present_NG = torch.tensor([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    matched = match(features_GD, features_GD)
    assert activation_f1(matched, present_NG, present_NG.float())[:2].tolist() == [1, 1]
    codes_NF = torch.tensor([[1.0, 0, 0], [0, 0, 0], [0, 2.0, 0], [0.5, 0, 0]])  # one hit, one miss, one false alarm
    assert activation_f1(matched, present_NG, codes_NF)[0] == pytest.approx(0.5)


# Hierarchy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [0.0, 0.5])
def test_the_truth_in_any_order_has_no_error_across_and_within_levels(cosine):
    world = tree(16, seed=0, cosine=cosine)
    found = hierarchy(world.features_GD, 3 * shuffled(world.features_GD), world.parents, world.levels)
    assert max(abs(value) for value in found) < 1e-5


def test_children_that_absorb_their_parent_are_an_error_across_levels_and_siblings_that_blur_one_within():
    world = tree(16, seed=0)
    absorbing, blurred = world.features_GD.clone(), world.features_GD.clone()
    for child, parent in enumerate(world.parents):
        if parent >= 0:
            absorbing[child] += world.features_GD[parent]
            siblings = [i for i, other in enumerate(world.parents) if other == parent and i != child]
            blurred[child] += 0.5 * world.features_GD[siblings].sum(0)
    found = hierarchy(world.features_GD, absorbing, world.parents, world.levels)
    assert found.parent_child == pytest.approx(0.5**0.5, abs=1e-4)
    assert found.across == pytest.approx(0.5, abs=1e-4)
    found = hierarchy(world.features_GD, blurred, world.parents, world.levels)
    assert found.across < 1e-6 < 0.05 < found.within


# Stability --------------------------------------------------------------------------------------------------------


def test_stability_is_one_of_the_same_atoms_in_any_order_and_low_of_random_directions():
    atoms_FD = directions(96, 32)
    assert pair_stability(atoms_FD, 2 * shuffled(atoms_FD)).cosine == pytest.approx(1, abs=1e-5)
    assert random_stability(96, 32) == pytest.approx(0.4, abs=0.02)
    assert random_stability(96, 512) < 0.15


def test_an_arm_leaves_dead_latents_out_of_its_stability_and_says_their_share():
    """Both seeds find the same 4 directions and have two dead latents in random ones."""
    truth = torch.eye(6)
    codes_NF = torch.ones(3, 6)
    codes_NF[:, 4:] = 0
    found = [
        Learned(atoms_FD=torch.cat([shuffled(truth[:4], s), directions(2, 6, s)]), codes_NF=codes_NF, held_out={})
        for s in (0, 1)
    ]
    values = stability_of_arm(found, [directions(6, 6, seed) for seed in (2, 3)])
    assert values["dead"] == pytest.approx([1 / 3] * 2)
    assert values["stability"] == pytest.approx([1])
    assert values["stability_of_random"] == [random_stability(4, 6)]
    assert values["stability_at_start"] == [pair_stability(directions(6, 6, 2)[:4], directions(6, 6, 3)[:4]).cosine]


def test_stability_is_symmetric():
    one, other = directions(10, 6, 0), directions(7, 6, 1)
    assert pair_stability(one, other).cosine == pytest.approx(pair_stability(other, one).cosine)


# Identifiability --------------------------------------------------------------------------------------------------


def test_codes_that_are_the_truth_identify_every_concept_at_some_threshold():
    present_NG = torch.rand(500, 5, generator=torch.Generator().manual_seed(0)) < 0.2
    codes_NF = torch.where(present_NG, 2.0, 0.5)[:, [3, 0, 4, 1, 2]]
    assert identifiability(codes_NF, present_NG) == pytest.approx((1, 1))


def test_codes_that_know_nothing_score_the_share_of_rows_without_the_concept_and_one_half():
    present_NG = torch.rand(500, 5, generator=torch.Generator().manual_seed(0)) < 0.2
    found = identifiability(torch.zeros(500, 3), present_NG)
    assert found.accuracy == pytest.approx(1 - float(present_NG.double().mean()))
    assert found.balanced == pytest.approx(0.5)


@given(seed=st.integers(0, 100))
def test_identifiability_is_the_best_of_all_thresholds(seed):
    generator = torch.Generator().manual_seed(seed)
    present_NG = torch.rand(20, 2, generator=generator) < 0.4
    codes_NF = torch.randint(0, 4, (20, 3), generator=generator).float()  # many ties
    best = [
        max(
            float(((codes_NF[:, j] > t) == present_NG[:, g]).double().mean())
            for j in range(3)
            for t in (-1, 0, 1, 2, 3)
        )
        for g in range(2)
    ]
    assert identifiability(codes_NF, present_NG).accuracy == pytest.approx(sum(best) / 2)
