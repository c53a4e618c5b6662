"""Gradients for functions with a jump: JumpReLU and the step of L0, by straight-through estimators.

With the rectangle kernel K(u) = 1 for |u| < 1/2 and a bandwidth e, the derivative of an expectation over a jump at the
threshold t is estimated from the values within e / 2 of it (Rajamanoharan et al., Jumping ahead, 2024, section 4):

    d jump(z, t) / dt = - (t / e) K((z - t) / e)        d step(z, t) / dt = - (1 / e) K((z - t) / e)

In that school z gets no gradient from the jump itself. Anthropic's (January 2025 update) sends it to z as well, with
the opposite sign: `to_input`. Shapes: z and t are alike, of any shape.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function


def jump(z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
    """z where it is above the threshold, else 0."""
    out: Tensor = _Jump.apply(z, threshold, bandwidth, to_input)
    return out


def step(z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
    """1 where z is above the threshold, else 0."""
    out: Tensor = _Step.apply(z, threshold, bandwidth, to_input)
    return out


def _kernel(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """K((z - t) / e) / e."""
    return ((z - threshold).abs() < bandwidth / 2).to(z.dtype) / bandwidth


class _Jump(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return z * (z > threshold)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        z, threshold = ctx.saved_tensors
        at_jump = grads[0] * threshold * _kernel(z, threshold, ctx.bandwidth)
        passed = grads[0] * (z > threshold)
        return passed + at_jump if ctx.to_input else passed, -at_jump, None, None


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return (z > threshold).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        z, threshold = ctx.saved_tensors
        at_jump = grads[0] * _kernel(z, threshold, ctx.bandwidth)
        return at_jump if ctx.to_input else None, -at_jump, None, None
