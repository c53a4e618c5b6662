"""Non-negative codes for fixed atoms, and atoms for given codes: the two halves of matrix factorisation.

Shapes: B rows, D width, F latents, K active latents of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lexray.training.mesh.axes import DataAxis, FeatureAxis, largest
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import topk

EPS = 1e-10
"""Floor of denominators, as a share of what is usual in them: codes and sums scale with the rows."""
FIT_ROUNDS = 20
"""Updates of a row's active codes alone; they cost little."""
CHUNK_NUMBERS = 2**25
"""Numbers held at once of the active atoms of a few rows."""


@torch.no_grad()
def sparse_codes(x_BD: Tensor, atoms_FD: Tensor, k: int, rounds: int, latents: FeatureAxis) -> SparseCode:
    """Codes z >= 0 with k entries that make ||x - z atoms||^2 small.

    The multiplicative updates of semi-NMF (Ding, Li and Jordan, 2010) on all latents rank them; the k largest are then
    fitted alone by the same updates. Rows are brought to a length near 1 for that, exactly (by a power of two).
    """
    scale_B1 = power_of_two_below(x_BD.norm(dim=1, keepdim=True))
    x_BD = x_BD / scale_B1
    affinity_BF = x_BD @ atoms_FD.T
    z_BF = multiplicative(affinity_BF, atoms_FD @ atoms_FD.T, affinity_BF.clamp_min(0), rounds)
    chosen = topk(z_BF, k, latents)
    latents_BK = chosen.latents.view(len(x_BD), k)
    parts = []
    for rows in torch.arange(len(x_BD), device=x_BD.device).split(max(1, CHUNK_NUMBERS // (k * x_BD.shape[1]))):
        active_BKD = atoms_FD[latents_BK[rows]]
        gram_BKK = active_BKD @ active_BKD.mT
        start_BK = z_BF[rows].gather(1, latents_BK[rows])
        affinity_BK = affinity_BF[rows].gather(1, latents_BK[rows])
        parts.append(multiplicative(affinity_BK[:, None], gram_BKK, start_BK[:, None], FIT_ROUNDS)[:, 0])
    return SparseCode((torch.cat(parts) * scale_B1).flatten(), chosen, len(atoms_FD))


def power_of_two_below(length: Tensor) -> Tensor:
    """The largest power of two that is not above a length; 1 for length 0."""
    mantissa, exponent = torch.frexp(length)
    return torch.where(length > 0, torch.ldexp(torch.full_like(mantissa, 0.5), exponent), 1.0)


def multiplicative(affinity: Tensor, gram: Tensor, start: Tensor, rounds: int) -> Tensor:
    """Minimise ||x - z atoms||^2 over z >= 0, given x atoms^T and atoms atoms^T (any leading dimensions).

    z <- z * sqrt((affinity+ + z gram-) / (affinity- + z gram+)), with (.)+ and (.)- the positive and negative parts.
    An entry that is zero stays zero.
    """
    gram_plus, gram_minus = gram.clamp_min(0), (-gram).clamp_min(0)
    plus, minus = affinity.clamp_min(0), (-affinity).clamp_min(0)
    # Overlapping starts overshoot; the best common factor of a row costs one product.
    fitted = (affinity * start).sum(-1, keepdim=True) / ((start @ gram) * start).sum(-1, keepdim=True).clamp_min(EPS)
    z = start * fitted.clamp_min(0)
    for _ in range(rounds):
        z = z * ((plus + z @ gram_minus) / (minus + z @ gram_plus + EPS)).sqrt()
    return z


def largest_entries(atoms_FD: Tensor, kept: int) -> Tensor:
    """Return the atoms with the `kept` largest entries of each, by magnitude, the others zero; the first of equals."""
    indices_FK = largest(atoms_FD.abs(), kept).indices
    return torch.zeros_like(atoms_FD).scatter(1, indices_FK, atoms_FD.gather(1, indices_FK))


@torch.no_grad()
def singular_directions(batches: Callable[[], Iterable[Tensor]], count: int, rows: DataAxis) -> Tensor:
    """Return the leading right singular vectors (count, D) of all ranks' rows, largest singular value first.

    Codes are not negative, so each has the sign with which positive projections explain more of the rows.
    """
    moment_DD = rows.all_reduce(torch.as_tensor(sum(x_BD.double().T @ x_BD.double() for x_BD in batches())))
    _, vectors_DD = torch.linalg.eigh(moment_DD)
    vectors_DF = vectors_DD.flip(1)[:, :count]
    excess_F = torch.zeros(count, dtype=torch.float64, device=vectors_DF.device)
    for x_BD in batches():
        projected_BF = x_BD.double() @ vectors_DF
        excess_F += (projected_BF * projected_BF.abs()).sum(0)
    return (vectors_DF * torch.where(rows.all_reduce(excess_F) < 0, -1.0, 1.0)).T.contiguous()


def least_squares_atoms(sum_zz_FF: Tensor, sum_zx_FD: Tensor, atoms_FD: Tensor, ridge: float = 1e-4) -> Tensor:
    """Atoms that minimise the summed ||x - z atoms||^2 given sum z^T z and sum z^T x.

    A little ridge pulls towards the atoms before; those that no row used stay.
    """
    usual = float(sum_zz_FF.diagonal().mean())
    scale = (ridge + EPS) * usual or 1.0
    eye = torch.eye(len(sum_zz_FF), dtype=sum_zz_FF.dtype, device=sum_zz_FF.device)
    return torch.linalg.solve(sum_zz_FF + scale * eye, sum_zx_FD + scale * atoms_FD)


def multiplicative_atoms(sum_zz_FF: Tensor, sum_zx_FD: Tensor, atoms_FD: Tensor, rounds: int) -> Tensor:
    """The same over atoms >= 0, by Lee and Seung's updates (2001): atoms <- atoms * (z^T x) / (z^T z atoms)."""
    usual = sum_zz_FF.diagonal().mean()
    for _ in range(rounds):
        used_F1, floor = sum_zz_FF.diagonal()[:, None] > EPS * usual, EPS * usual
        updated_FD = atoms_FD * sum_zx_FD / (sum_zz_FF @ atoms_FD + floor)
        atoms_FD = torch.where(used_F1, updated_FD, atoms_FD)
    return atoms_FD
