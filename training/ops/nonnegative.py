"""Exact non-negative least squares for a few atoms of every row, all rows at once.

The active-set method of Lawson and Hanson (1974): an atom with a positive score enters, coefficients that would become
negative leave, until no atom outside has a positive score. Each step solves one K x K system per row.

Shapes: B rows, K atoms of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

STEPS_PER_ATOM = 3
"""Maximum number of atoms that enter, as a multiple of K; without rounding K would do for most rows."""


@torch.no_grad()
def nonnegative_least_squares(gram_BKK: Tensor, affinity_BK: Tensor, start_BK: Tensor, least_B: Tensor) -> Tensor:
    """Return the c >= 0 (B, K) that minimise ||x - c atoms||^2, given atoms atoms^T and x atoms^T of every row.

    `start_BK` is the solution for the atoms with a positive coefficient in it, or zero. An atom enters where its score,
    its product with the residual, exceeds `least_B`.
    """
    values_BK, positive_BK = start_BK, start_BK > 0
    for _ in range(STEPS_PER_ATOM * start_BK.shape[1]):
        scores_BK = affinity_BK - (gram_BKK @ values_BK[:, :, None])[:, :, 0]
        best_B, entering_B = scores_BK.masked_fill(positive_BK, 0).max(1)
        rows_U = (best_B > least_B).nonzero().squeeze(1)
        if not len(rows_U):
            break
        positive_BK = positive_BK.index_put((rows_U, entering_B[rows_U]), torch.tensor(True, device=rows_U.device))
        fitted_UK = _without_negative(gram_BKK[rows_U], affinity_BK[rows_U], values_BK[rows_U], positive_BK[rows_U])
        values_BK = values_BK.index_copy(0, rows_U, fitted_UK)
        positive_BK = positive_BK.index_copy(0, rows_U, fitted_UK > 0)
    return values_BK


def _without_negative(gram_UKK: Tensor, affinity_UK: Tensor, values_UK: Tensor, positive_UK: Tensor) -> Tensor:
    """Fit the atoms in the mask, leaving out those that would become negative on the way from `values_UK` (U, K)."""
    found_UK, left = torch.empty_like(values_UK), torch.arange(len(values_UK), device=values_UK.device)
    while len(left):
        fitted = _least_squares(gram_UKK[left], affinity_UK[left], positive_UK)
        negative = positive_UK & (fitted <= 0)
        found_UK[left] = fitted
        go_on = negative.any(1).nonzero().squeeze(1)
        left, fitted, negative = left[go_on], fitted[go_on], negative[go_on]
        values_UK, positive_UK = values_UK[go_on], positive_UK[go_on]
        # The share of the way to the fit at which the first coefficient reaches zero; that one leaves.
        tiny = torch.finfo(fitted.dtype).tiny
        share_UK = torch.where(negative, values_UK / (values_UK - fitted).clamp_min(tiny), torch.inf)
        first_U1 = share_UK.amin(1, keepdim=True)
        positive_UK = positive_UK & (share_UK > first_U1)
        values_UK = torch.where(positive_UK, values_UK + first_U1 * (fitted - values_UK), 0).clamp_min(0)
    return found_UK


def _least_squares(gram_UKK: Tensor, affinity_UK: Tensor, mask_UK: Tensor) -> Tensor:
    """Return the least-squares coefficients of the atoms in the mask, zero for the others (U, K)."""
    inside_UKK = mask_UK[:, :, None] & mask_UK[:, None, :]
    # Rounding may make the system of nearly equal atoms singular; a share of it on the diagonal does not change a fit.
    ridge = torch.finfo(gram_UKK.dtype).eps * mask_UK.shape[1]
    diagonal_UK = torch.where(mask_UK, ridge * gram_UKK.diagonal(dim1=1, dim2=2), 1)
    system_UKK = torch.where(inside_UKK, gram_UKK, 0) + torch.diag_embed(diagonal_UK)
    return torch.linalg.solve(system_UKK, torch.where(mask_UK, affinity_UK, 0)[:, :, None])[:, :, 0] * mask_UK
