"""However rows are split over two ranks, their parts add up to what one rank does with all of them."""

from __future__ import annotations

import functools
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from training_cases import (
    BASELINES,
    CASES,
    DEFAULTS,
    LEARNED,
    B,
    Case,
    cut,
    find_case,
    gradients,
    loss_of,
    named,
    random_dictionary,
    random_rows,
    untrained,
)
from training_synthetic import on_two_ranks

from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.mesh.axes import LOCAL_DATA, Axes
from lexray.training.objectives.forward import LossOutput
from lexray.training.ops.kmeans import kmeans
from lexray.training.ops.kmeans import random_rows as draw_rows
from lexray.training.ops.sampling import geometric_median


class Part(NamedTuple):
    terms: LossOutput
    gradients: dict[str, Tensor]


def add(parts: list[Tensor]) -> Tensor:
    return functools.reduce(torch.add, parts)


def loss_in_two_parts(case: Case, seed: int, rows: RawRows, place: int, **buffers: float) -> list[Part]:
    def work(rank: int, axes: Axes) -> Part:
        made = random_dictionary(case, seed, axes=axes)
        for name, value in buffers.items():
            made.get_buffer(name).fill_(value)
        part = cut(rows, 0, place) if rank == 0 else cut(rows, place)
        terms = loss_of(made, part, len(rows.x_BD))
        return Part(terms, gradients(made, terms.loss))

    return on_two_ranks(work)


def assert_terms_are_the_whole(parts: list[LossOutput], whole: LossOutput) -> None:
    torch.testing.assert_close(add([terms.loss for terms in parts]), whole.loss)
    for name, value in whole.sums.items():
        torch.testing.assert_close(add([terms.sums[name] for terms in parts]), value)
    assert torch.equal(add([terms.fired_F for terms in parts]), whole.fired_F)
    for name, value in whole.observed.items():
        torch.testing.assert_close(parts[0].observed[name], value)
        assert torch.equal(parts[0].observed[name], parts[1].observed[name])


def assert_parts_are_the_whole(parts: list[Part], whole: Dictionary, rows: RawRows) -> None:
    terms = loss_of(whole, rows)
    assert_terms_are_the_whole([part.terms for part in parts], terms)
    for name, gradient in gradients(whole, terms.loss).items():
        torch.testing.assert_close(add([part.gradients[name] for part in parts]), gradient)


@pytest.mark.parametrize("case", **named(LEARNED))
@given(seed=st.integers(0, 2**31), place=st.integers(1, B - 1))
@settings(max_examples=5)
def test_the_parts_of_two_ranks_add_up_to_the_whole(case, seed, place):
    whole = random_dictionary(case, seed)
    rows = random_rows(whole.sites, seed)
    assert_parts_are_the_whole(loss_in_two_parts(case, seed, rows, place), whole, rows)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0, 50.0])
@pytest.mark.parametrize("name", ["batch_topk", "matryoshka_batch_topk", "crosscoder_batch_topk"])
def test_the_parts_add_up_whatever_the_running_threshold_is(name, threshold):
    case = find_case(name)
    whole = random_dictionary(case, 11)
    rows = random_rows(whole.sites, 11)
    assert_parts_are_the_whole(loss_in_two_parts(case, 11, rows, 5, threshold=threshold), whole, rows)


def test_ranks_whose_activations_differ_in_size_share_one_threshold():
    """The larger half has nearly all of the active latents: a threshold for each rank would not."""
    case = find_case("batch_topk")
    whole = random_dictionary(case, 6)
    x_BD = torch.cat([random_rows(whole.sites, 1, 12).x_BD * 0.1, random_rows(whole.sites, 2, 12).x_BD * 10])
    rows = RawRows(x_BD, x_BD)
    parts = loss_in_two_parts(case, 6, rows, 12)
    assert_parts_are_the_whole(parts, whole, rows)
    assert parts[1].terms.sums["active"] > 4 * parts[0].terms.sums["active"]


# Baselines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [1, 9, B - 1])
@pytest.mark.parametrize("case", **named(BASELINES))
def test_what_two_ranks_learn_from_their_parts_is_what_one_learns_from_the_whole(case, place):
    whole = random_dictionary(case, 3)
    batches = [random_rows(whole.sites, number) for number in (1, 2)]

    def work(rank: int, axes: Axes) -> tuple[Dictionary, LossOutput]:
        made = random_dictionary(case, 3)
        made.rows, made.latents, made.pairs = axes
        for batch in batches:
            part = cut(batch, 0, place) if rank == 0 else cut(batch, place)
            terms = made.learn(part.x_BD, B)
        return made, terms

    parts = on_two_ranks(work)
    terms = [whole.learn(batch.x_BD, B) for batch in batches][-1]
    for made, _ in parts:
        torch.testing.assert_close(made.state_dict(), whole.state_dict())
    assert_terms_are_the_whole([terms for _, terms in parts], terms)


# Starting values --------------------------------------------------------------------------------------------------


def prepared_on_two_ranks(case: Case, batches: list[RawRows], place: int, **options) -> list[dict[str, Tensor]]:
    def work(rank: int, axes: Axes) -> dict[str, Tensor]:
        made = untrained(case, 1, axes, **options).double()
        mine = [cut(batch, 0, place) if rank == 0 else cut(batch, place) for batch in batches]
        made.prepare(lambda: mine)
        return made.state_dict()

    return on_two_ranks(work)


WITH_OPTIONS = [
    (case, options)
    for case in DEFAULTS
    for options in ({"normaliser": "whiten"}, {"bias_init": "geometric_median"})
    if options.keys() <= case.option_names and not ("normaliser" in options and case.cls.kind == "crosscoder")
]
STARTS = [
    pytest.param(case, options, id=f"{case}-{options}")
    for case, options in [*((case, {}) for case in CASES), *WITH_OPTIONS]
]


@pytest.mark.parametrize("place", [7, 63])
@pytest.mark.parametrize(("case", "options"), STARTS)
def test_starting_values_are_equal_however_rows_are_split(case, options, place):
    """Candidates of k-means, geometric medians, whitening matrices, quantiles."""
    whole = untrained(case, 1, **options).double()
    batches = [random_rows(whole.sites, number, 64) for number in (5, 6)]
    parts = prepared_on_two_ranks(case, batches, place, **options)
    whole.prepare(lambda: batches)
    for state in parts:
        torch.testing.assert_close(state, whole.state_dict(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("case", **named(CASES))
def test_starting_values_are_the_same_on_both_ranks_bit_for_bit(case):
    batches = [random_rows(untrained(case).sites, number, 64) for number in (5, 6)]
    first, second = prepared_on_two_ranks(case, batches, 20)
    assert all(torch.equal(first[name], second[name]) for name in first)


def split_in(x_BD: Tensor, places: list[int], axes: Axes | None, rank: int = 0) -> list[Tensor]:
    """Batches of one rank, or of both."""
    parts = list(x_BD.tensor_split(places))
    return parts if axes is None else parts[rank::2]


@pytest.mark.parametrize("places", [[10, 20, 30], [1, 99, 150], [60, 61, 62]])
def test_clusters_drawn_rows_and_medians_are_the_same_in_any_batches_on_any_ranks(places):
    x_BD = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))

    def found(rank: int, axes: Axes | None) -> list[Tensor]:
        mine, rows = split_in(x_BD, places, axes, rank), axes.rows if axes else LOCAL_DATA
        batches = lambda: mine  # noqa: E731
        return [draw_rows(batches, 13, rows, 5), kmeans(batches, 6, rows, 5), geometric_median(batches, rows, x_BD[0])]

    alone = [draw_rows(lambda: [x_BD], 13, LOCAL_DATA, 5), kmeans(lambda: [x_BD], 6, LOCAL_DATA, 5)]
    alone.append(geometric_median(lambda: [x_BD], LOCAL_DATA, x_BD[0]))
    for other in (found(0, None), *on_two_ranks(found)):
        torch.testing.assert_close(other, alone, rtol=1e-5, atol=1e-6)
