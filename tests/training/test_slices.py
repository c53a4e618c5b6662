"""However the latents are split over ranks, the ranks together do what one does with all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from training_cases import (
    LEARNED,
    B,
    Case,
    F,
    K,
    find_case,
    gradients,
    loss_of,
    random_dictionary,
    random_rows,
    untrained,
)
from training_synthetic import latent_axes, on_ranks

from lexray.training.dictionaries import make_dictionary
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.engines.resampling import restarts, worst_rows
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.axes import LOCAL_FEATURE, LOCAL_WORLD, Axes
from lexray.training.objectives.forward import LossOutput


def sizes_of(case: Case) -> list[int]:
    """Numbers of slices that the width (and the groups of GroupMax) can be cut into."""
    return [5] if case.architecture == "group_max" else [2, 3]


SPLIT = [pytest.param(case, size, id=f"{case}-{size}") for case in LEARNED for size in sizes_of(case)]


def slice_of(whole: Dictionary, axes: Axes) -> Dictionary:
    """The same dictionary as one rank of a mesh has it."""
    made = make_dictionary(whole.config, whole.sites, seed=whole.seed, axes=axes).double()
    made.load_state_dict(made.slice_of(whole.state_dict()))
    made.at_step(whole.step, whole.num_steps)
    return made


class Part(NamedTuple):
    terms: LossOutput
    gradients: dict[str, Tensor]
    code: Tensor
    reconstruction_BO: Tensor
    metrics: dict[str, float]


def part_of(made: Dictionary, rows: RawRows) -> Part:
    terms = loss_of(made, rows)
    found = gradients(made, terms.loss)
    with torch.no_grad():
        code = made.encode(rows.x_BD)
        return Part(terms, found, code.dense(), made.decode(code, rows.x_BD), evaluate(made, [rows]))


@pytest.mark.parametrize(("case", "size"), SPLIT)
def test_slices_have_the_loss_code_and_gradients_of_the_whole(case: Case, size: int) -> None:
    for seed in (1, 2):
        whole = random_dictionary(case, seed)
        rows = random_rows(whole.sites, seed)

        def work(rank: int, axes: Axes, whole: Dictionary = whole, rows: RawRows = rows) -> Part:
            return part_of(slice_of(whole, axes), rows)

        parts, expected = on_ranks(work, latent_axes, size), part_of(whole, rows)
        assert expected.terms.fired_F.any()
        assert torch.equal(torch.cat([part.terms.fired_F for part in parts]), expected.terms.fired_F)
        torch.testing.assert_close(torch.cat([part.code for part in parts], 1), expected.code)
        for part in parts:
            torch.testing.assert_close(part.terms.loss, expected.terms.loss)
            torch.testing.assert_close(part.terms.sums, expected.terms.sums)
            torch.testing.assert_close(part.terms.observed, expected.terms.observed)
            torch.testing.assert_close(part.reconstruction_BO, expected.reconstruction_BO)
            assert part.metrics == pytest.approx(expected.metrics)
        for name, gradient in expected.gradients.items():
            found = [part.gradients[name] for part in parts]
            together = torch.cat(found) if name in whole.split_names() else found[0]
            torch.testing.assert_close(together, gradient, msg=lambda text, name=name: f"{name}: {text}")
            if name not in whole.split_names():
                assert all(torch.equal(other, found[0]) for other in found)


@pytest.mark.parametrize("options", [{"inference": "omp"}, {"k": 2}, {"inference": "omp", "k": 3}])
def test_pursuit_by_slices_picks_what_the_whole_does(options: dict[str, Any]) -> None:
    whole = random_dictionary(find_case("mp"), 3)
    rows = random_rows(whole.sites, 3)
    parts = on_ranks(lambda rank, axes: slice_of(whole, axes).encode(rows.x_BD, **options).dense(), latent_axes, 3)
    torch.testing.assert_close(torch.cat(parts, 1), whole.encode(rows.x_BD, **options).dense())


@pytest.mark.parametrize("name", ["topk", "hierarchical_topk", "group_max", "batch_topk"])
def test_slices_encode_with_another_number_of_latents_as_the_whole_does(name: str) -> None:
    whole = random_dictionary(find_case(name), 3)
    rows, size = random_rows(whole.sites, 3), sizes_of(find_case(name))[0]
    parts = on_ranks(lambda rank, axes: slice_of(whole, axes).encode(rows.x_BD, k=3).dense(), latent_axes, size)
    torch.testing.assert_close(torch.cat(parts, 1), whole.encode(rows.x_BD, k=3).dense())


@pytest.mark.parametrize(("case", "size"), SPLIT)
def test_slices_start_as_the_whole_does(case: Case, size: int) -> None:
    def prepared(axes: Axes | None) -> dict[str, Tensor]:
        made = (untrained(case, 1, axes) if axes else untrained(case, 1)).double()
        batches = [random_rows(made.sites, number, 64) for number in (5, 6)]
        made.prepare(lambda: batches)
        return dict(made.gather_full(made.state_dict()))

    whole = prepared(None)
    for state in on_ranks(lambda rank, axes: prepared(axes), latent_axes, size):
        torch.testing.assert_close(state, whole)


RESTARTED = [param for param in SPLIT if "archetypal" not in str(param.values[0])]


@pytest.mark.parametrize(("case", "size"), RESTARTED)
def test_slices_restart_the_dead_latents_of_the_whole(case: Case, size: int) -> None:
    def changed(made: Dictionary, rows: RawRows) -> dict[str, Tensor]:
        assert isinstance(made, LearnedDictionary)
        dead_U = made.dead_F.nonzero().squeeze(1)
        count, first = made.latents.count(len(dead_U)), made.latents.exclusive_sum(len(dead_U))
        with torch.no_grad():
            starts = worst_rows(made, rows, count, made.rows)
            changes = restarts(made, dead_U, starts[first : first + len(dead_U)])
            parameters = dict(made.named_parameters())
            return dict(made.gather_full({name: put(parameters[name].detach()) for name, put in changes.items()}))

    whole = random_dictionary(case, 4)
    rows = random_rows(whole.sites, 4)
    expected = changed(whole, rows)
    for found in on_ranks(lambda rank, axes: changed(slice_of(whole, axes), rows), latent_axes, size):
        torch.testing.assert_close(found, expected)


# The choices ------------------------------------------------------------------------------------------------------


def tied_scores(seed: int) -> Tensor:
    """Few distinct values, so that most rows have ties at every k."""
    return torch.randint(0, 4, (B, F), generator=torch.Generator().manual_seed(seed)).float()


def dense(rows: Any, latents: Tensor, width: int) -> Tensor:
    out = torch.zeros(B, width, dtype=torch.bool)
    out[rows, latents] = True
    return out


@pytest.mark.parametrize("k", [1, 2, K, 13, 29, F])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_of_equal_scores_the_first_latents_are_chosen_however_they_are_split(size: int, k: int) -> None:
    scores_BF = tied_scores(k)
    expected = torch.zeros(B, F, dtype=torch.bool)
    for row in range(B):
        first = sorted(range(F), key=lambda latent, row=row: (-float(scores_BF[row, latent]), latent))[:k]
        expected[row, first] = True

    def work(rank: int, axes: Axes) -> Tensor:
        mine = scores_BF[:, axes.latents.slice_of(F)]
        chosen = axes.latents.topk(mine, k)
        assert chosen.offsets[-1] == len(chosen.latents)
        return dense(chosen.rows, chosen.latents, mine.shape[1])

    assert torch.equal(torch.cat(on_ranks(work, latent_axes, size), 1), expected)
    alone = LOCAL_FEATURE.topk(scores_BF, k)
    assert torch.equal(dense(alone.rows, alone.latents, F), expected)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_largest_score_and_places_are_those_of_the_whole(size: int) -> None:
    scores_BF = tied_scores(7)
    best_B, number_B = LOCAL_FEATURE.argmax(scores_BF)
    assert torch.equal(number_B, (scores_BF == best_B[:, None]).int().argmax(1))
    places_BF = LOCAL_FEATURE.global_rank(scores_BF)

    def work(rank: int, axes: Axes) -> Tensor:
        owned = axes.latents.slice_of(F)
        value_B, found_B = axes.latents.argmax(scores_BF[:, owned])
        assert torch.equal(value_B, best_B)
        assert torch.equal(found_B, number_B)
        local_B = axes.latents.owned(number_B, owned.stop - owned.start)
        assert torch.equal(local_B >= 0, (number_B >= owned.start) & (number_B < owned.stop))
        assert torch.equal(local_B[local_B >= 0] + owned.start, number_B[local_B >= 0])
        assert (axes.latents.owned(torch.full((3,), -1), 4) == -1).all()
        return axes.latents.global_rank(scores_BF[:, owned])

    assert torch.equal(torch.cat(on_ranks(work, latent_axes, size), 1), places_BF)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batch_topk_keeps_exactly_k_a_row_when_rows_are_repeated(size: int) -> None:
    """Equal rows have equal activations; of those that equal the smallest one kept the first rows' are kept."""
    case = find_case("batch_topk")
    whole = random_dictionary(case, 3, dead=0)
    with torch.no_grad():
        whole.get_parameter("b_enc").add_(3)  # every latent is active, so that there are enough to choose from
    row_1D = random_rows(whole.sites, 1, 1).x_BD
    rows = RawRows(row_1D.expand(B, -1).contiguous(), row_1D.expand(B, -1).contiguous())

    def work(rank: int, axes: Axes) -> Tensor:
        return loss_of(slice_of(whole, axes), rows).fired_F

    fired_F = torch.cat(on_ranks(work, latent_axes, size)) if size > 1 else loss_of(whole, rows).fired_F
    assert int(fired_F.sum()) == K * B
    assert sorted(set(fired_F.tolist())) in ([0, B], [0, int(fired_F[fired_F > 0].min()), B])
    assert torch.equal(fired_F, loss_of(whole, rows).fired_F)


def test_a_sum_passes_its_gradient_on_and_a_shared_tensor_adds_up_its_own() -> None:
    values = torch.randn(3, generator=torch.Generator().manual_seed(0))

    def work(rank: int, axes: Axes) -> tuple[Tensor, Tensor]:
        whole, partial = values.clone().requires_grad_(), (values * rank).requires_grad_()
        (
            axes.latents.all_reduce(partial).square().sum() + (axes.latents.copy_to_axis(whole) * (rank + 1)).sum()
        ).backward()
        assert whole.grad is not None
        assert partial.grad is not None
        return whole.grad, partial.grad

    for shared, summed in on_ranks(work, latent_axes, 3):
        assert torch.equal(shared, torch.full((3,), 6.0))
        torch.testing.assert_close(summed, 2 * 3 * values)


@pytest.mark.parametrize("k", [1, 3, 7, 20])
def test_the_kth_largest_of_all_pairs_is_that_of_the_values_together(k: int) -> None:
    values = torch.rand(11, generator=torch.Generator().manual_seed(0))
    parts = values.split([2, 0, 9])
    for found in on_ranks(lambda rank, axes: axes.pairs.kth_largest(parts[rank], k), latent_axes, 3):
        assert torch.equal(found, LOCAL_WORLD.kth_largest(values, k))
