"""Rate-distortion of a code, at several numbers of active latents and precisions of their values.

**Fewer or more latents.** Architectures whose `encode` takes `k` encode with it (`encode`); in the others' codes the k
largest contributions |value| * ||atom|| of a row are kept and the rest dropped (`truncate`), so k above the trained L0
changes little or nothing.

**Description length** (Ayonrinde et al., Interpretability as compression, 2024, arXiv:2410.11179). Contributions are
rounded to whole multiples of a step; what rounds to zero is not active. The bits of a row are

    sum over latents j of H_b(p_j)  +  L0 * H(level)

p_j: share of the rows in which latent j is active after rounding, H_b its binary entropy: which latents are active,
each coded independently. H(level): entropy of the non-zero multiples over all active latents together: one table for
all of them, which few rows estimate well (a table per latent would need many rows of each). Not counted: the
dictionary itself, a row's own mean and scale under `layer_norm`, the input that a skip connection reads.

**At equal distortion.** Dictionaries compare by the bits they need for the same FVU. The measured points (k, step) give
(FVU, bits) each, predicting the mean gives (1, 0 bits), and using one code for a share of the rows and another for the
rest gives every point on the line between two. `bits_at` is the least bits so reached.

Shapes: B rows, O width of the output sites, F latents, S output sites, N active pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.measures.firing import FiringCounts
from lexray.training.ops.sparse_code import SparseCode
from lexray.training.ops.topk import subset

SHARES = (0.25, 0.5, 2.0)
"""Additional numbers of active latents to measure, as shares of the trained one."""

STEPS = (2.0, 1.0, 0.5, 0.25)
"""Rounding steps relative to the root mean square contribution: 1 loses about 1/12 of the variance, 1/4 0.5 %."""

DISTORTIONS = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05, 0.02)
"""FVU at which dictionaries are compared by their bits."""

LARGEST_LEVEL = 2**13
"""Maximum level, in steps; larger values are clipped."""


class RatePoint(NamedTuple):
    """A code with rounded values."""

    fvu: float
    bits: float
    """Bits per row."""


def numbers_of_latents(dictionary: Dictionary, l0: float) -> list[int]:
    """Return values of k around the trained one, ascending; around `l0` for codes that do not take k."""
    base = dictionary.config.target_l0 if dictionary.takes_k else l0
    return sorted({min(dictionary.config.width, max(1, round(base * share))) for share in SHARES})


def contribution_norms(dictionary: Dictionary) -> Tensor:
    """Return the norm of each atom, in normalised units (F)."""
    atoms_FO: Tensor = dictionary.atoms_FD()  # type: ignore[operator]
    return atoms_FO.norm(dim=1)


def truncated(code: SparseCode, k: int, norms_F: Tensor) -> SparseCode:
    """Return the code with the k largest contributions of every row; the first of equal ones."""
    rows_N = code.rows
    order = (code.values.abs() * norms_F[code.indices]).argsort(descending=True, stable=True)
    order = order[rows_N[order].argsort(stable=True)]  # row after row, the largest first
    place_N = torch.empty_like(order)
    place_N[order] = torch.arange(len(order), device=order.device) - code.chosen.offsets[rows_N[order]]
    kept_N = place_N < k
    return code._replace(values=code.values[kept_N], chosen=subset(code.chosen, kept_N))


class Rounded(NamedTuple):
    """A code whose contributions are whole multiples of a step."""

    code: SparseCode
    levels_N: Tensor
    """The multiples, int64."""


def rounded(code: SparseCode, norms_F: Tensor, step: float) -> Rounded:
    """Round contributions to multiples of `step`; those that round to 0 become inactive."""
    norm_N = norms_F[code.indices]
    levels_N = (code.values * norm_N / step).round().long().clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
    values_N = torch.where(norm_N > 0, levels_N * step / norm_N, 0.0).to(code.values.dtype)
    return Rounded(code._replace(values=values_N), levels_N)


def entropy_bits(counts: Tensor) -> float:
    """Return the entropy of the distribution given by counts, in bits."""
    shares = counts[counts > 0].double() / counts.sum()
    return -float((shares * shares.log2()).sum())


def index_bits(frequency_F: Tensor) -> float:
    """Return the bits per row that encode which latents are active: the sum of their binary entropies."""
    p_F = frequency_F[(frequency_F > 0) & (frequency_F < 1)].double()
    return -float((p_F * p_F.log2() + (1 - p_F) * (1 - p_F).log2()).sum())


class _Point:
    """Sums for one choice of k and step (0: values are not rounded)."""

    def __init__(self, dictionary: Dictionary, step: float, norms_F: Tensor) -> None:
        self.dictionary, self.step, self.norms_F = dictionary, step, norms_F
        self.widths = [site.width for site in dictionary.sites.outputs]
        self.firing = FiringCounts(dictionary.config.width, norms_F.device)
        self.error_S = torch.zeros(len(self.widths), dtype=torch.float64, device=norms_F.device)
        self.levels = torch.zeros(2 * LARGEST_LEVEL + 1, dtype=torch.int64, device=norms_F.device)

    def add(self, code: SparseCode, batch: RawRows) -> None:
        if self.step:
            code, levels_N = rounded(code, self.norms_F, self.step)
            self.levels += torch.bincount(levels_N + LARGEST_LEVEL, minlength=len(self.levels))
        self.firing.add(code)
        error_BO = (self.dictionary.decode(code, batch.x_BD) - batch.y_BO).double()
        self.error_S += torch.stack([part.square().sum() for part in error_BO.split(self.widths, 1)])

    def fvu(self, variance_S: Tensor) -> float:
        """Return the FVU; NaN where the rows of a site have no variance."""
        return float((self.error_S / variance_S).mean())

    def bits(self) -> float:
        active = self.levels.clone()
        active[LARGEST_LEVEL] = 0
        return index_bits(self.firing.frequency_F) + self.firing.l0 * entropy_bits(active)


class Rates:
    """FVU and bits at several numbers of active latents and steps; None is the code as at inference."""

    def __init__(self, dictionary: Dictionary, l0: float, contribution: float) -> None:
        """`contribution`: root mean square of |value| * ||atom|| over the active pairs."""
        self.dictionary, self.norms_F = dictionary, contribution_norms(dictionary)
        self.ks: list[int | None] = [None, *numbers_of_latents(dictionary, l0)]
        steps = [0.0, *(share * (contribution or 1.0) for share in STEPS)]  # nothing active: any step works
        self.points = {(k, step): _Point(dictionary, step, self.norms_F) for k in self.ks for step in steps}

    def add(self, batch: RawRows) -> None:
        """Add a batch of raw rows."""
        whole = self.dictionary.encode(batch.x_BD)
        codes = {k: whole if k is None else self._code(batch.x_BD, k, whole) for k in self.ks}
        for (k, _), point in self.points.items():
            point.add(codes[k], batch)

    def _code(self, x_BD: Tensor, k: int, whole: SparseCode) -> SparseCode:
        if self.dictionary.takes_k:
            return self.dictionary.encode(x_BD, k=k)  # type: ignore[call-arg]
        return truncated(whole, k, self.norms_F)

    def curve(self, variance_S: Tensor) -> dict[str, Any]:
        """Return FVU and R2 = 1 - FVU against k; k None is the code as at inference."""
        points = [
            {"k": k, "l0": point.firing.l0, "fvu": point.fvu(variance_S), "r2": 1 - point.fvu(variance_S)}
            for (k, step), point in self.points.items()
            if not step
        ]
        return {"method": "encode" if self.dictionary.takes_k else "truncate", "points": points}

    def description_length(self, variance_S: Tensor) -> dict[str, Any]:
        """Return the bits per row at each measured point and at `DISTORTIONS` (None: not reached)."""
        measured = {
            place: RatePoint(point.fvu(variance_S), point.bits()) for place, point in self.points.items() if place[1]
        }
        return {
            "points": [{"k": k, "step": step, **point._asdict()} for (k, step), point in measured.items()],
            "bits_at_fvu": {f"{fvu:g}": bits_at(fvu, list(measured.values())) for fvu in DISTORTIONS},
        }


def bits_at(fvu: float, points: Sequence[RatePoint]) -> float | None:
    """Return the least bits per row at which one code, or a mixture of two over rows, reaches this FVU.

    Predicting the mean costs nothing and has FVU 1. None where no code reaches the FVU.
    """
    points = [*points, RatePoint(1.0, 0.0)]
    reached = [point for point in points if point.fvu <= fvu]
    mixed = [
        near.bits + (far.bits - near.bits) * (fvu - near.fvu) / (far.fvu - near.fvu)
        for near in reached
        for far in points
        if far.fvu > fvu
    ]
    return min([point.bits for point in reached] + mixed, default=None)
