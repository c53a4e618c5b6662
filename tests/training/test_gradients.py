"""Gradients are derivatives: finite differences in float64, and the stated formulas where a jump has none.

Excepted, since they are not derivatives by design: gradients to thresholds, and to encoders where jumps send theirs
there; what AuxK's residual would send back (AuxK is off here and alone below); what Gated's auxiliary term would send
to the decoder and its bias. `test_equations` holds those against the equations.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from training_cases import (
    K_AUX,
    LEARNED,
    B,
    Case,
    find_case,
    gradients,
    loss_of,
    named,
    random_dictionary,
    random_rows,
)

from lexray.training.dictionaries.base import Dictionary
from lexray.training.mesh.axes import LOCAL_DATA, LOCAL_FEATURE, ONE_PROCESS
from lexray.training.objectives.auxk import AuxK, residual_variance
from lexray.training.objectives.forward import Batch, Forward, Reconstruction
from lexray.training.ops.linear import Decoder, LinearEncoder
from lexray.training.ops.preactivations import DenseEntries
from lexray.training.ops.sparse_products import prefix_errors
from lexray.training.ops.straight_through import jump, step


def not_derivatives(case: Case) -> set[str]:
    """Names of the parameters whose gradient is not the loss's derivative."""
    if case.code == "jumprelu":
        by_input = case.options.get("gradient") == "threshold_and_input"
        return {"scaled_log_threshold", "W_enc", "b_enc"} if by_input else {"scaled_log_threshold"}
    return {"W_dec", "b_dec"} if case.code.startswith("gated") else set()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", **named(LEARNED))
def test_finite_differences_agree_with_autograd(case, seed):
    aux_off = {"aux_weight": 0, "terms": {}}
    made = random_dictionary(case, seed, **{name: aux_off[name] for name in aux_off if name in case.option_names})
    rows = random_rows(made.sites, seed)
    found = gradients(made, loss_of(made, rows).loss)
    checked = found.keys() - not_derivatives(case)
    assert checked
    for name in sorted(checked):
        direction = torch.randn(found[name].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = finite_difference(made, name, direction, lambda: float(loss_of(made, rows).loss.detach()))
        assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-5, abs=1e-8)


def finite_difference(made: Dictionary, name: str, direction: Tensor, loss, width: float = 1e-6) -> float:
    """Slope of the loss along a direction of one parameter."""
    parameter = made.get_parameter(name)
    start, values = parameter.detach().clone(), []
    with torch.no_grad():
        for sign in (1, -1):
            parameter.copy_(start + sign * width * direction)
            values.append(loss())
        parameter.copy_(start)
    return (values[0] - values[1]) / (2 * width)


# AuxK -------------------------------------------------------------------------------------------------------------


def aux_of(made: Dictionary, x_BD: Tensor, residual_BD: Tensor, W_enc: Tensor, bias_F: Tensor, atoms: Tensor) -> Tensor:
    encoder, decoder, zero = LinearEncoder(W_enc, bias_F), Decoder(atoms, None), x_BD.new_zeros(())
    batch = Batch(x_BD, x_BD, zero, B, encoder, decoder, made.dead_F)
    z_BF = encoder.all(x_BD).detach()
    forward = Forward(
        batch=batch, pairs=DenseEntries(z_BF), values=z_BF, reconstruction=Reconstruction(zero, residual_BD),
        fired_F=made.dead_F, z_BF=z_BF,
    )  # fmt: skip
    return AuxK(score=made.code.score, value=made.code.value, k_aux=K_AUX)(forward, ONE_PROCESS)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["topk", "abs_topk"])
def test_finite_differences_of_auxk_agree_with_autograd(name, seed):
    made = random_dictionary(find_case(name), seed)
    x_BD, residual_BD = (random_rows(made.sites, number).x_BD for number in (seed, seed + 100))
    inputs = [p.detach().clone().requires_grad_() for p in (made.W_enc, made.b_enc, made.W_dec)]
    assert torch.autograd.gradcheck(lambda *tensors: aux_of(made, x_BD, residual_BD, *tensors), inputs)


def test_the_residual_of_auxk_gets_no_gradient():
    made = random_dictionary(find_case("topk"), 0)
    residual_BD = random_rows(made.sites, 5).x_BD.requires_grad_()
    aux_of(made, random_rows(made.sites, 0).x_BD, residual_BD, made.W_enc, made.b_enc, made.W_dec).backward()
    assert residual_BD.grad is None


def test_the_residual_variance_is_taken_about_the_mean_of_the_residuals():
    e_BD = torch.randn(B, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(residual_variance(e_BD, B, LOCAL_DATA), B * e_BD.var(0, correction=0).sum())


# Straight-through estimators --------------------------------------------------------------------------------------

numbers = st.lists(st.floats(-2, 2), min_size=1, max_size=20)


@given(numbers, st.floats(0.05, 1), st.floats(0.05, 1), st.booleans())
def test_jumps_pass_on_the_gradients_that_the_papers_state(values, theta, bandwidth, to_input):
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    t = torch.full_like(z, theta).requires_grad_()
    above = (z > t).double().detach()
    kernel = ((z - t).abs() < bandwidth / 2).double().detach() / bandwidth
    out = jump(z, t, bandwidth, to_input)
    torch.testing.assert_close(out, z * above)
    to_z, to_t = torch.autograd.grad(out.sum(), (z, t))
    torch.testing.assert_close(to_t, -theta * kernel)
    torch.testing.assert_close(to_z, above + (theta * kernel if to_input else 0))


@given(numbers, st.floats(0.05, 1), st.floats(0.05, 1), st.booleans())
def test_steps_pass_on_the_gradients_that_the_papers_state(values, theta, bandwidth, to_input):
    z = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    t = torch.full_like(z, theta).requires_grad_()
    kernel = ((z - t).abs() < bandwidth / 2).double().detach() / bandwidth
    out = step(z, t, bandwidth, to_input)
    assert torch.equal(out, (z > t).double())
    to_z, to_t = torch.autograd.grad(out.sum(), (z, t), allow_unused=True)
    torch.testing.assert_close(to_t, -kernel)
    if to_input:
        torch.testing.assert_close(to_z, kernel)
    else:
        assert to_z is None


# The errors of all prefixes ---------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_errors_of_all_prefixes_are_those_of_the_dense_products_with_their_gradients(count, num_atoms, seed):
    generator = torch.Generator().manual_seed(seed)
    latents_BK = torch.randint(0, 9, (count, num_atoms), generator=generator)
    shapes = (count, num_atoms), (9, 4), (count, 4)
    values, atoms, target = (torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)
    steps = (values[:, :, None] * atoms[latents_BK]).cumsum(1)
    errors = (target[:, None] - steps).square().sum((0, 2))
    total, residual = prefix_errors(values, latents_BK, atoms, target, LOCAL_FEATURE)
    expected, found = torch.stack([errors.sum(), errors[-1]]), torch.stack([total, residual.square().sum()])
    torch.testing.assert_close(found, expected)
    weights = torch.tensor([0.7, -1.3], dtype=torch.float64)
    inputs = (values, atoms, target)
    grads = (torch.autograd.grad((made * weights).sum(), inputs) for made in (found, expected))
    torch.testing.assert_close(*grads)
