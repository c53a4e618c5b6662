"""Matching pursuit, which repeatedly picks the atom that explains most of the residual, and its orthogonal form.

Mallat and Zhang (1993); unrolled as an encoder by Costa et al., From flat to hierarchical (2025), arXiv:2506.03093.
With unit-norm atoms a_j and r_0 = x, round t picks j = arg max <r_t, a_j>, takes c = <r_t, a_j>, and leaves
r_{t+1} = r_t - c a_j. The gradient runs through every round (the arg max carries none), in the memory of one residual:
each is the next one plus its atom, so the backward pass walks from the last to the first.

Shapes: B rows, D width, F latents on this rank, T rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from lexray.training.mesh.axes import FeatureAxis
from lexray.training.ops.nonnegative import nonnegative_least_squares
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import from_counts

LEAST_SCORE = 1e-6
"""Orthogonal pursuit stops a row when no atom explains this share of its length: the rest is rounding."""
OMP_CHUNK_NUMBERS = 2**25
"""Maximum numbers of gathered atoms that orthogonal pursuit holds for a chunk of rows."""


class StopRule(NamedTuple):
    """Rule by which a row stops."""

    rounds: int
    """Maximum number of atoms that a row picks."""
    residual_norm: float = 0.0
    """Rows whose residual is shorter than this stop."""
    at_repeat: bool = False
    """A row stops with the round in which it picks an atom again."""


class Pursuit(NamedTuple):
    """Picked atoms and coefficients, round by round."""

    picks_BT: Tensor
    """Global index of the atom, -1 where the row had stopped."""
    values_BT: Tensor
    """Coefficient of the atom, zero where the row had stopped. Carries gradient."""
    residual_BD: Tensor
    """Final residual. Carries gradient."""


def pursue(x_BD: Tensor, atoms_FD: Tensor, rule: StopRule, latents: FeatureAxis) -> Pursuit:
    """Run matching pursuit with gradients to x and atoms. A row also stops when no atom has a positive score."""
    return Pursuit(*_Pursue.apply(x_BD, atoms_FD, rule, latents))


class _Pursue(Function):
    @staticmethod
    def forward(
        ctx: Any, x_BD: Tensor, atoms_FD: Tensor, rule: StopRule, latents: FeatureAxis
    ) -> tuple[Tensor, Tensor, Tensor]:
        residual_BD = x_BD.clone()
        picks: list[Tensor] = []
        values: list[Tensor] = []
        going_B = torch.ones(len(x_BD), dtype=torch.bool, device=x_BD.device)
        scores_BF = x_BD.new_empty(len(x_BD), len(atoms_FD))
        for _ in range(rule.rounds):
            going_B &= residual_BD.norm(dim=1) >= rule.residual_norm
            torch.mm(residual_BD, atoms_FD.T, out=scores_BF)
            best_B, pick_B = latents.argmax(scores_BF)
            going_B &= best_B > 0
            if not going_B.any():
                break
            value_B = best_B * going_B
            pick_B = torch.where(going_B, pick_B, -1)
            residual_BD -= value_B[:, None] * _picked(atoms_FD, pick_B, latents)
            if rule.at_repeat and picks:
                going_B &= ~(torch.stack(picks, 1) == pick_B[:, None]).any(1)
            picks.append(pick_B)
            values.append(value_B)
        picks_BT = torch.stack(picks, 1) if picks else torch.zeros(len(x_BD), 0, dtype=torch.int64, device=x_BD.device)
        values_BT = torch.stack(values, 1) if values else x_BD.new_zeros(len(x_BD), 0)
        ctx.save_for_backward(picks_BT, values_BT, residual_BD, atoms_FD)
        ctx.latents = latents
        ctx.mark_non_differentiable(picks_BT)
        return picks_BT, values_BT, residual_BD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        picks_BT, values_BT, residual_BD, atoms_FD = ctx.saved_tensors
        grad_values_BT, grad_BD = grads[1], grads[2].clone()
        residual_BD, grad_atoms_FD = residual_BD.clone(), torch.zeros_like(atoms_FD)
        for t in range(picks_BT.shape[1] - 1, -1, -1):
            pick_B, value_B = picks_BT[:, t], values_BT[:, t]
            atom_BD = _picked(atoms_FD, pick_B, ctx.latents)
            residual_BD += value_B[:, None] * atom_BD
            # c = <r, a> and r' = r - c a: the gradient of c, then those of a and r. A stopped row has none.
            grad_value_B = (grad_values_BT[:, t] - (grad_BD * atom_BD).sum(1)) * (value_B != 0)
            owned_B = ctx.latents.owned(pick_B, len(atoms_FD))
            mine_B = owned_B >= 0
            grad_atom_BD = grad_value_B[:, None] * residual_BD - value_B[:, None] * grad_BD
            grad_atoms_FD.index_add_(0, owned_B[mine_B], grad_atom_BD[mine_B])
            grad_BD += grad_value_B[:, None] * atom_BD
        return grad_BD, grad_atoms_FD, None, None


def _picked(atoms_FD: Tensor, pick_B: Tensor, latents: FeatureAxis) -> Tensor:
    """Return the picked atom of every row (B, D), whichever rank owns it; zero for -1."""
    owned_B = latents.owned(pick_B, len(atoms_FD))
    return latents.all_reduce(atoms_FD[owned_B.clamp_min(0)] * (owned_B >= 0)[:, None])


def to_code(picks_BT: Tensor, values_BT: Tensor, width: int, latents: FeatureAxis) -> SparseCode:
    """Return the picks of this rank's `width` latents as a code; coefficients of the same atom are added."""
    picks_BT = latents.owned(picks_BT, width)
    rows_N, rounds_N = (picks_BT >= 0).nonzero(as_tuple=True)
    keys_N = rows_N * width + picks_BT[rows_N, rounds_N]
    unique_M, inverse_N = keys_N.unique(return_inverse=True)
    values_M = values_BT.new_zeros(len(unique_M)).index_add(0, inverse_N, values_BT[rows_N, rounds_N])
    counts_B = torch.bincount(unique_M // width, minlength=len(picks_BT))
    return SparseCode(values_M, from_counts(unique_M % width, counts_B), width)


class Picked(NamedTuple):
    """Picked atoms and their coefficients, without gradient."""

    picks_BT: Tensor
    """Global index of the atom, -1 where the row had stopped or the coefficient is zero."""
    values_BT: Tensor


@torch.no_grad()
def orthogonal_pursuit(x_BD: Tensor, atoms_FD: Tensor, rule: StopRule, latents: FeatureAxis) -> Picked:
    """Run non-negative orthogonal matching pursuit: each pick refits all coefficients of a row.

    Pati, Rezaiifar and Krishnaprasad (1993); with c >= 0 Bruckstein, Elad and Zibulevsky (2008). The coefficients are
    the least squares of those that are not negative, exactly (`ops.nonnegative`). No picked atom has a positive score
    then, so none is picked twice; the coefficient of one may become zero by later picks.
    """
    with torch.autocast(x_BD.device.type, enabled=False):  # rounded products would be no least squares
        parts = [_orthogonal(rows, atoms_FD, rule, latents) for rows in _few_rows(x_BD, rule.rounds)]
    return Picked(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _orthogonal(x_BD: Tensor, atoms_FD: Tensor, rule: StopRule, latents: FeatureAxis) -> tuple[Tensor, Tensor]:
    residual_BD, (num_rows, width) = x_BD, x_BD.shape
    least_B = LEAST_SCORE * x_BD.norm(dim=1)
    picks_BT = torch.full((num_rows, rule.rounds), -1, device=x_BD.device)
    values_BT, affinity_BT = x_BD.new_zeros(2, num_rows, rule.rounds)
    support_BTD = x_BD.new_zeros(num_rows, rule.rounds, width)
    gram_BTT = x_BD.new_zeros(num_rows, rule.rounds, rule.rounds)
    going_B = torch.ones(num_rows, dtype=torch.bool, device=x_BD.device)
    scores_BF = x_BD.new_empty(num_rows, len(atoms_FD))
    for t in range(rule.rounds):
        going_B &= residual_BD.norm(dim=1) >= rule.residual_norm
        torch.mm(residual_BD, atoms_FD.T, out=scores_BF)
        best_B, pick_B = latents.argmax(scores_BF)
        going_B &= (best_B > least_B) & ~(picks_BT == pick_B[:, None]).any(1)
        if not going_B.any():
            break
        pick_B = torch.where(going_B, pick_B, -1)
        atom_BD = _picked(atoms_FD, pick_B, latents)  # zero where a row has stopped: its score is, so it never enters
        now = slice(0, t + 1)
        picks_BT[:, t], support_BTD[:, t], affinity_BT[:, t] = pick_B, atom_BD, (x_BD * atom_BD).sum(1)
        gram_BTT[:, t, now] = gram_BTT[:, now, t] = (support_BTD[:, now] @ atom_BD[:, :, None])[:, :, 0]
        found = (gram_BTT[:, now, now], affinity_BT[:, now], values_BT[:, now])
        values_BT[:, now] = nonnegative_least_squares(*found, least_B)
        residual_BD = x_BD - (values_BT[:, None, now] @ support_BTD[:, now])[:, 0]
    return torch.where(values_BT > 0, picks_BT, -1), values_BT


def _few_rows(x_BD: Tensor, rounds: int) -> Iterator[Tensor]:
    yield from x_BD.split(orthogonal_rows(len(x_BD), rounds, x_BD.shape[1]))


def orthogonal_rows(rows: int, rounds: int, width: int) -> int:
    """Return the number of rows whose picked atoms orthogonal pursuit holds at once."""
    return min(rows, max(1, OMP_CHUNK_NUMBERS // max(1, rounds * width)))
