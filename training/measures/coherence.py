"""Coherence: pairwise similarity of a dictionary's atoms. Shapes: F atoms, O their width, Q atoms compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

DUPLICATE_ABOVE = 0.99
"""Two atoms with a cosine above this are duplicates."""

BLOCK_ENTRIES = 2**24
"""Number of cosines held at once."""

COMPARE_FLOP = 5e11
"""Default limit on operations for comparing atoms: seconds on one core. It suffices for a width of 16,384 at 768
dimensions; in wider dictionaries a sample of atoms is compared with all others."""


def unit_rows(atoms_FO: Tensor) -> Tensor:
    """Return the atoms as float32 vectors of length 1; a zero atom stays zero and matches none."""
    return F.normalize(atoms_FO.detach().float(), dim=1, eps=torch.finfo(torch.float32).tiny)


def cosine_blocks(queries_QO: Tensor, keys_FO: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the cosines of unit rows in blocks of queries: (slice of the queries, (q, F))."""
    block = max(1, BLOCK_ENTRIES // max(1, len(keys_FO)))
    for start in range(0, len(queries_QO), block):
        some = slice(start, min(start + block, len(queries_QO)))
        yield some, (queries_QO[some] @ keys_FO.T).clamp(-1, 1)


@torch.no_grad()
def coherence(atoms_FO: Tensor, p: int, *, max_flop: float | None = COMPARE_FLOP) -> dict[str, Any]:
    """Return the coherence of the atoms, in normalised units of the output sites; signs count only for duplicates.

        max_cosine          largest |cos| of two atoms (the coherence mu)
        mean_max_cosine     mean over atoms of the largest |cos| with another
        babel               mu_1(p) = max over atoms i of the sum of the p largest |cos| with others (Tropp, 2004): in
                            0..p; with unit atoms, any p of them are linearly independent while mu_1(p - 1) is below 1
        duplicate_fraction  share of atoms with another at cos > 0.99 (signed: an opposite is no duplicate)
        duplicate_pairs     number of such pairs; None where not all atoms are compared

    Costs 2 F^2 O operations and at most the memory of `BLOCK_ENTRIES` cosines. Where that is above `max_flop`, a
    random sample of `atoms_compared` atoms is compared with all: max_cosine and babel are then lower bounds, the shares
    estimates. None compares all.
    """
    unit_FO = unit_rows(atoms_FO)
    width, p = len(unit_FO), max(1, min(p, len(unit_FO) - 1))
    chosen_Q = compared_atoms(width, 2 * unit_FO.numel(), max_flop).to(unit_FO.device)
    max_Q, babel, with_duplicate, pairs = [], 0.0, 0, 0
    for some, cos_QF in cosine_blocks(unit_FO[chosen_Q], unit_FO):
        cos_QF[torch.arange(len(cos_QF), device=cos_QF.device), chosen_Q[some]] = 0
        is_double_QF = cos_QF > DUPLICATE_ABOVE
        with_duplicate += int(is_double_QF.any(1).sum())
        pairs += int(is_double_QF.sum())
        nearest_QP = cos_QF.abs_().topk(p, dim=1).values
        max_Q.append(nearest_QP[:, 0])
        babel = max(babel, float(nearest_QP.double().sum(1).max()))
    largest_Q = torch.cat(max_Q).double()
    return {
        "atoms_compared": len(chosen_Q),
        "max_cosine": float(largest_Q.max()),
        "mean_max_cosine": float(largest_Q.mean()),
        "p": p,
        "babel": babel,
        "duplicate_above": DUPLICATE_ABOVE,
        "duplicate_fraction": with_duplicate / len(chosen_Q),
        "duplicate_pairs": pairs // 2 if len(chosen_Q) == width else None,
    }


def compared_atoms(width: int, flop_per_atom: float, max_flop: float | None) -> Tensor:
    """Return sorted indices of the atoms to compare with all others (Q): all, or a random sample within `max_flop`."""
    affordable = width if max_flop is None else int(max_flop / flop_per_atom)
    if affordable >= width:
        return torch.arange(width)
    drawn = torch.randperm(width, generator=torch.Generator().manual_seed(0))[: max(1, affordable)]
    return drawn.sort().values
