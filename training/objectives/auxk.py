"""AuxK: dead latents learn to reconstruct the residual of the living ones.

Gao et al., Scaling and evaluating sparse autoencoders (2024), section 2.4 and appendix A.2. With e the residual, not
differentiated, and e_hat the reconstruction of it by the `k_aux` dead latents with the largest scores (no bias): the
sum over rows of ||e - e_hat||^2, divided by the residual's own variance over the global batch, so that the term does
not shrink with the residual. The paper takes a k_aux of about half the site's width and the weight 1/32;
implementations differ in whether candidates are rectified first (here: yes), and in what divides (here: the residual's
variance).

Shapes: B rows, O output width, F latents, U dead latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lexray.training.mesh.axes import Axes, DataAxis
from lexray.training.objectives.forward import Forward
from lexray.training.ops.linear import Decoder
from lexray.training.ops.sparse_products import sparse_decode
from lexray.training.ops.topk import Score, topk_among


@dataclass(frozen=True, kw_only=True)
class AuxK:
    """||e - e_hat||^2 / variance of e, e_hat being the reconstruction of the error e by `k_aux` dead latents."""

    score: Callable[[Decoder], Score]
    """Score by which pre-activations are ranked, given the decoder."""
    value: Callable[[Tensor], Tensor]
    """Activation function of pre-activations."""
    k_aux: int | None
    """Dead latents per row; None is half the output's width."""

    def __call__(self, forward: Forward, axes: Axes) -> Tensor:
        batch = forward.batch
        dead_U = batch.dead_F.nonzero().squeeze(1)
        num_dead = axes.latents.count(len(dead_U))
        if not num_dead:
            return batch.x_BD.new_zeros(())
        assert forward.z_BF is not None, "AuxK ranks dead latents by their pre-activations"
        error_BO = forward.reconstruction.error_BO
        k_aux = self.k_aux or max(1, error_BO.shape[1] // 2)
        chosen = topk_among(forward.z_BF, dead_U, min(k_aux, num_dead), axes.latents, self.score(batch.decoder))
        values_N = self.value(batch.encoder.at(forward.z_BF, chosen, batch.x_BD))
        e_hat_BO = axes.latents.all_reduce(sparse_decode(values_N, chosen, batch.decoder.atoms_FO))
        e_BO = error_BO.detach()
        variance = residual_variance(e_BO, batch.total_rows, axes.rows)
        return (e_BO - e_hat_BO).square().sum() / torch.where(variance > 0, variance, torch.inf)


def residual_variance(e_BO: Tensor, total_rows: int, rows: DataAxis) -> Tensor:
    """Return the sum over the global batch of the squared distance of residuals from their mean (scalar, no gradient).

    It is at least the rounding of the residuals' squares, and zero where the residual is zero.
    """
    sums = rows.all_reduce(torch.cat([e_BO.sum(0), e_BO.square().sum().reshape(1)]))
    squares = sums[-1]
    floor = torch.finfo(squares.dtype).eps * squares
    return torch.maximum(squares - sums[:-1].square().sum() / total_rows, floor)
