"""AuxK: dead latents learn to model what the living ones leave over.

Gao et al., Scaling and evaluating sparse autoencoders (2024), section 2.4 and appendix A.2. With e the residual, not
differentiated, and e_hat the reconstruction of it by the `k_aux` dead latents with the largest rectified
pre-activations (no bias): the sum over rows of ||e - e_hat||^2, divided by the residual's own variance over the
global batch, so that the term does not shrink with the residual. The paper takes the k_aux of about half the site's
width and the weight 1/32; implementations differ in whether candidates are rectified first (here: yes), and in what
divides (here: the residual's variance).

Shapes: B rows, D site width, F latents, U dead latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from training.axes import Chosen, Latents, Rows
from training.sparse_ops import sparse_decode


def auxk_term(
    dead_F: Tensor, x_BD: Tensor, residual_BD: Tensor, W_enc_FD: Tensor, bias_F: Tensor, atoms_FD: Tensor, *,
    k_aux: int, total_rows: int, latents: Latents, rows: Rows,
) -> Tensor:  # fmt: skip
    """This rank's part of the term (scalar, with gradient to encoder, bias and atoms); zero when nothing is dead."""
    dead_U = dead_F.nonzero().squeeze(1)
    if not len(dead_U):
        return x_BD.new_zeros(())
    z_BU = F.relu(F.linear(x_BD, W_enc_FD[dead_U], bias_F[dead_U]))
    chosen = latents.topk(z_BU.detach(), min(k_aux, len(dead_U)))
    values_N = z_BU[chosen.rows, chosen.latents]
    e_hat_BD = latents.sum(sparse_decode(values_N, Chosen(chosen.latents, chosen.offsets), atoms_FD[dead_U]))
    e_BD = residual_BD.detach()
    return (e_BD - e_hat_BD).square().sum() / residual_variance(e_BD, total_rows, rows)


def residual_variance(e_BD: Tensor, total_rows: int, rows: Rows) -> Tensor:
    """Sum over the global batch of the squared distance of residuals from their mean (scalar, no gradient)."""
    sums = rows.sum(torch.cat([e_BD.sum(0), e_BD.square().sum().reshape(1)]))
    return (sums[-1] - sums[:-1].square().sum() / total_rows).clamp_min(1e-12)
