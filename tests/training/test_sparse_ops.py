"""Products with sparse codes are the dense products: values and gradients, whatever the rows' lengths."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lexray.training.mesh.axes import Chosen
from lexray.training.ops.sparse_products import chosen_preactivations, sparse_decode, sum_by_latent


class Problem(NamedTuple):
    """Random operands in float64 and a choice of latents with ragged rows."""

    x_BD: Tensor
    weight_FD: Tensor
    bias_F: Tensor
    values_N: Tensor
    chosen: Chosen

    @property
    def dense_BF(self) -> Tensor:
        """The values as a matrix, with gradient to them."""
        empty = torch.zeros(len(self.x_BD), len(self.weight_FD), dtype=self.values_N.dtype)
        return empty.index_put((self.chosen.rows, self.chosen.latents), self.values_N, accumulate=True)


def problem(counts: list[int], num_latents: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Problem:
    """A problem whose row b has `counts[b]` distinct latents, in no order."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    latents = [torch.randperm(num_latents, generator=generator)[:count] for count in counts]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    chosen = Chosen(torch.cat([*latents, torch.zeros(0, dtype=torch.int64)]), offsets)
    return Problem(
        x_BD=random(len(counts), width),
        weight_FD=random(num_latents, width).requires_grad_(),
        bias_F=random(num_latents).requires_grad_(),
        values_N=random(sum(counts)).requires_grad_(),
        chosen=chosen,
    )


@st.composite
def problems(draw) -> Problem:
    num_latents = draw(st.integers(1, 9))
    counts = draw(st.lists(st.integers(0, num_latents), min_size=1, max_size=7))
    return problem(counts, num_latents, draw(st.integers(1, 5)), draw(st.integers(0, 2**31)))


def backward(out: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Gradients of a random but repeatable weighting of `out`."""
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=out.dtype)
    gradients = torch.autograd.grad((out * weights).sum(), inputs, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, gradients, strict=True)]


def dense_preactivations(p: Problem) -> Tensor:
    return (p.x_BD @ p.weight_FD.T + p.bias_F)[p.chosen.rows, p.chosen.latents]


def sparse_preactivations(p: Problem) -> Tensor:
    z_BF = (p.x_BD @ p.weight_FD.T + p.bias_F).detach()
    return chosen_preactivations(z_BF, p.chosen, p.x_BD, p.weight_FD, p.bias_F)


@given(problems())
def test_sparse_decode_is_the_dense_product(p: Problem):
    torch.testing.assert_close(sparse_decode(p.values_N, p.chosen, p.weight_FD), p.dense_BF @ p.weight_FD)


@given(problems())
def test_sparse_decode_has_the_gradients_of_the_dense_product(p: Problem):
    inputs = (p.values_N, p.weight_FD)
    sparse = backward(sparse_decode(p.values_N, p.chosen, p.weight_FD), *inputs)
    torch.testing.assert_close(sparse, backward(p.dense_BF @ p.weight_FD, *inputs))


@given(problems())
def test_chosen_preactivations_are_entries_of_the_dense_product(p: Problem):
    torch.testing.assert_close(sparse_preactivations(p), dense_preactivations(p))


@given(problems())
def test_chosen_preactivations_have_the_gradients_of_the_dense_product(p: Problem):
    inputs = (p.weight_FD, p.bias_F)
    torch.testing.assert_close(backward(sparse_preactivations(p), *inputs), backward(dense_preactivations(p), *inputs))


@given(problems())
def test_sum_by_latent_is_the_transposed_dense_product(p: Problem):
    total_FD = sum_by_latent(p.values_N.detach(), p.chosen, p.x_BD, len(p.weight_FD))
    torch.testing.assert_close(total_FD, p.dense_BF.detach().T @ p.x_BD)


@given(problems())
def test_rows_of_chosen_pairs_follow_the_offsets(p: Problem):
    counts = p.chosen.offsets.diff().tolist()
    assert p.chosen.rows.tolist() == [row for row, count in enumerate(counts) for _ in range(count)]


@given(problems())
@settings(max_examples=15)
def test_autograd_of_the_whole_chain_agrees_with_finite_differences(p: Problem):
    def reconstruct(weight_FD: Tensor, bias_F: Tensor, atoms_FD: Tensor) -> Tensor:
        values_N = sparse_preactivations(p._replace(weight_FD=weight_FD, bias_F=bias_F))
        return sparse_decode(values_N, p.chosen, atoms_FD)

    inputs = (p.weight_FD, p.bias_F, p.weight_FD.detach().flip(0).clone().requires_grad_())
    assert torch.autograd.gradcheck(reconstruct, inputs)


def test_rows_get_no_gradient_because_they_are_data():
    p = problem([2, 0, 3], num_latents=5, width=4, seed=0)
    x_BD = p.x_BD.clone().requires_grad_()
    chosen_preactivations(
        torch.zeros(3, 5, dtype=torch.float64), p.chosen, x_BD, p.weight_FD, p.bias_F
    ).sum().backward()
    assert x_BD.grad is None


def test_a_batch_in_which_nothing_is_chosen_decodes_to_zero_with_zero_gradients():
    p = problem([0, 0, 0], num_latents=4, width=3, seed=0)
    out = sparse_decode(p.values_N, p.chosen, p.weight_FD)
    assert torch.equal(out, torch.zeros(3, 3, dtype=torch.float64))
    assert not any(g.any() for g in backward(out, p.values_N, p.weight_FD))


@pytest.mark.parametrize("threads", [1, 2])
def test_repeated_runs_are_equal_bit_for_bit(threads: int):
    """Also on another number of threads: every sum is taken in the order of the rows."""
    generator = torch.Generator().manual_seed(1)
    counts = torch.randint(0, 48, (512,), generator=generator).tolist()
    p = problem(counts, num_latents=300, width=40, seed=2, dtype=torch.float32)

    def run() -> list[Tensor]:
        values_N = sparse_preactivations(p)
        out = sparse_decode(values_N, p.chosen, p.weight_FD)
        return [values_N, out, *backward(out, p.weight_FD, p.bias_F, p.values_N)]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    first = run()
    torch.set_num_threads(threads)
    try:
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    finally:
        torch.set_num_threads(before)
