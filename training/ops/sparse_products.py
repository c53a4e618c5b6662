"""Products with sparse codes whose cost follows the active latents, not the width.

A dense step of a dictionary costs about 12 B F D multiply-adds; with these it costs 2 B F D (the encoder's product,
needed to choose) and 8 B K D. Weight gradients are sums over the rows in which a latent was chosen, computed as bags
over the choices sorted by latent. Reductions run in a fixed order, so results repeat bit for bit on a CPU.

Shapes: B rows, D site width, F latents, N chosen (row, latent) pairs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from lexray.training.mesh.axes import Chosen, FeatureAxis


def sparse_decode(values_N: Tensor, chosen: Chosen, atoms_FD: Tensor) -> Tensor:
    """sum_n values[n] * atoms[latents[n]] for every row: (B, D). Gradients to values and atoms."""
    x_BD = F.embedding_bag(
        chosen.latents,
        atoms_FD.detach(),
        chosen.offsets,
        per_sample_weights=values_N,
        mode="sum",
        include_last_offset=True,
    )
    out: Tensor = _AtomGradient.apply(x_BD, atoms_FD, values_N.detach(), chosen)
    return out


def chosen_preactivations(pre_BF: Tensor, chosen: Chosen, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
    """The entries of x W^T + b (already computed, without gradient, as `pre_BF`) at the chosen pairs: (N).

    Gradients to weight and bias, none to x: rows are data.
    """
    out: Tensor = _ChosenPreactivations.apply(pre_BF, chosen, x_BD, weight_FD, bias_F)
    return out


def sum_by_latent(weights_N: Tensor, chosen: Chosen, rows_BD: Tensor, num_latents: int) -> Tensor:
    """For each latent, the sum of weights[n] * rows[row of n] over its choices: (F, D)."""
    order = torch.argsort(chosen.latents, stable=True)
    counts = torch.bincount(chosen.latents, minlength=num_latents)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return F.embedding_bag(
        chosen.rows[order],
        rows_BD,
        offsets,
        per_sample_weights=weights_N[order],
        mode="sum",
        include_last_offset=True,
    )


class _AtomGradient(Function):
    """Identity on the reconstruction that gives the atoms their gradient."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, atoms_FD: Tensor, values_N: Tensor, chosen: Chosen) -> Tensor:
        ctx.save_for_backward(values_N, *chosen)
        ctx.num_latents = len(atoms_FD)
        return x_BD.view_as(x_BD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        values_N, latents, offsets = ctx.saved_tensors
        grad_BD = grads[0].contiguous()
        return grad_BD, sum_by_latent(values_N, Chosen(latents, offsets), grad_BD, ctx.num_latents), None, None


class _ChosenPreactivations(Function):
    @staticmethod
    def forward(ctx: Any, pre_BF: Tensor, chosen: Chosen, x_BD: Tensor, weight_FD: Tensor, bias_F: Tensor) -> Tensor:
        ctx.save_for_backward(x_BD, *chosen)
        ctx.num_latents = len(weight_FD)
        return pre_BF[chosen.rows, chosen.latents].to(weight_FD.dtype)  # bf16 where that is what products are made in

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None, Tensor, Tensor]:
        x_BD, latents, offsets = ctx.saved_tensors
        grad_N = grads[0].contiguous()
        weight_grad = sum_by_latent(grad_N, Chosen(latents, offsets), x_BD, ctx.num_latents)
        bias_grad = grad_N.new_zeros(ctx.num_latents).index_add_(0, latents, grad_N)
        return None, None, None, weight_grad, bias_grad


def prefix_errors(
    values_BK: Tensor, picks_BK: Tensor, atoms_FD: Tensor, target_BD: Tensor, latents: FeatureAxis
) -> tuple[Tensor, Tensor]:
    """sum over rows and k = 1..K of ||target - the first k atoms times their values||^2, and what all K leave (B, D).

    `picks_BK` are this rank's latents, -1 where another rank has the row's k-th; the values there are zero. Gradients
    to values, atoms and target. The K residuals are never kept: each is the next one plus its atom, so the backward
    pass walks from the last to the first in O(B D) memory.
    """
    total, residual_BD = _PrefixErrors.apply(values_BK, picks_BK, atoms_FD, target_BD, latents)
    return total, residual_BD


class _PrefixErrors(Function):
    @staticmethod
    def forward(
        ctx: Any, values_BK: Tensor, picks_BK: Tensor, atoms_FD: Tensor, target_BD: Tensor, latents: FeatureAxis
    ) -> Any:
        residual_BD = target_BD.clone()
        total = target_BD.new_zeros(())
        for value_B, pick_B in zip(values_BK.unbind(1), picks_BK.unbind(1), strict=True):
            residual_BD -= latents.all_reduce(value_B[:, None] * atoms_FD[pick_B.clamp_min(0)])
            total = total + residual_BD.square().sum()
        ctx.save_for_backward(values_BK, picks_BK, atoms_FD, residual_BD)
        ctx.latents = latents
        return total, residual_BD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, Tensor, Tensor, None]:
        values_BK, picks_BK, atoms_FD, residual_BD = ctx.saved_tensors
        grad_total, grad_BD = grads[0], grads[1].clone()  # the latter of the residual after the round at hand
        residual_BD, grad_values_BK = residual_BD.clone(), torch.empty_like(values_BK)
        grad_atoms_FD = torch.zeros_like(atoms_FD)
        for k in range(values_BK.shape[1] - 1, -1, -1):
            grad_BD += 2 * grad_total * residual_BD
            pick_B = picks_BK[:, k].clamp_min(0)  # where it is -1 the value is zero, and its gradient goes nowhere
            atom_BD = atoms_FD[pick_B]
            grad_values_BK[:, k] = -(grad_BD * atom_BD).sum(1)
            grad_atoms_FD.index_add_(0, pick_B, -values_BK[:, k, None] * grad_BD)
            residual_BD += ctx.latents.all_reduce(values_BK[:, k, None] * atom_BD)
        return grad_values_BK, None, grad_atoms_FD, grad_BD, None
