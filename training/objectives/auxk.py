"""AuxK: dead latents learn to model what the living ones leave over.

Gao et al., Scaling and evaluating sparse autoencoders (2024), section 2.4 and appendix A.2. With e the residual, not
differentiated, and e_hat the reconstruction of it by the `k_aux` dead latents with the largest rectified
pre-activations (no bias): the sum over rows of ||e - e_hat||^2, divided by the residual's own variance over the
global batch, so that the term does not shrink with the residual. The paper takes the k_aux of about half the site's
width and the weight 1/32; implementations differ in whether candidates are rectified first (here: yes), and in what
divides (here: the residual's variance).

Shapes: B rows, D input width, O output width, F latents, U dead latents.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lexray.training.mesh.axes import Axes, DataAxis
from lexray.training.ops.sparse_products import chosen_preactivations, sparse_decode
from lexray.training.ops.topk import Score, topk_among


def auxk_term(
    dead_F: Tensor, x_BD: Tensor, residual_BO: Tensor, W_enc_FD: Tensor, bias_F: Tensor, atoms_FO: Tensor, *,
    z_BF: Tensor, score: Score, value: Callable[[Tensor], Tensor], k_aux: int, total_rows: int,
    axes: Axes,
) -> Tensor:  # fmt: skip
    """This rank's part of the term (scalar, with gradient to encoder, bias and atoms); zero when nothing is dead.

    `z_BF` are all pre-activations, without gradient; `score` ranks them and `value` makes activations of them.
    """
    dead_U = dead_F.nonzero().squeeze(1)
    num_dead = axes.latents.count(len(dead_U))
    if not num_dead:
        return x_BD.new_zeros(())
    chosen = topk_among(z_BF, dead_U, min(k_aux, num_dead), axes.latents, score)
    values_N = value(chosen_preactivations(z_BF, chosen, x_BD, W_enc_FD, bias_F))
    e_hat_BO = axes.latents.all_reduce(sparse_decode(values_N, chosen, atoms_FO))
    e_BO = residual_BO.detach()
    variance = residual_variance(e_BO, total_rows, axes.rows)
    return (e_BO - e_hat_BO).square().sum() / torch.where(variance > 0, variance, torch.inf)


def residual_variance(e_BO: Tensor, total_rows: int, rows: DataAxis) -> Tensor:
    """Sum over the global batch of the squared distance of residuals from their mean (scalar, no gradient).

    It is at least the rounding of the residuals' own squares, and zero where nothing is left to explain.
    """
    sums = rows.all_reduce(torch.cat([e_BO.sum(0), e_BO.square().sum().reshape(1)]))
    squares = sums[-1]
    floor = torch.finfo(squares.dtype).eps * squares
    return torch.maximum(squares - sums[:-1].square().sum() / total_rows, floor)
