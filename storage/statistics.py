"""Statistics of a site over all its rows: sums accumulated by shard, and exact quantiles of the norms.

Legend of shapes: B rows, D width of the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch

QUANTILE_LEVELS = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
"""Levels of the norm quantiles in a manifest."""
_LOW_BITS = 16


class SiteSums(NamedTuple):
    """Sums over rows in float64, of the values as stored (after rounding to the site's dtype)."""

    total: np.ndarray
    """Sum of the rows (D)."""
    squared_norm: float
    """Sum of the squared Euclidean norms."""
    norms: np.ndarray
    """Euclidean norm of each row (B), float32."""


def site_sums(x_BD: torch.Tensor, chunk_rows: int) -> SiteSums:
    """Return the sums over the rows, computed by chunk so that float64 copies stay small."""
    total, squared_norm, norms = np.zeros(x_BD.shape[1]), 0.0, []
    for start in range(0, len(x_BD), chunk_rows):
        x = x_BD[start : start + chunk_rows].double()
        squared_b = (x * x).sum(1)
        total += x.sum(0).numpy()
        squared_norm += float(squared_b.sum())
        norms.append(squared_b.sqrt().float().numpy())
    return SiteSums(total, squared_norm, np.concatenate(norms))


def exact_quantiles(values: Callable[[], Iterable[np.ndarray]], levels: Sequence[float]) -> list[float]:
    """Return exact quantiles of non-negative float32 values: per level q the least v with share(values <= v) >= q.

    `values` yields the same values, in parts, at each of its two calls. They are never held together: non-negative
    floats are ordered like their bits, so a histogram of the high halves finds each quantile's high half, and one of
    the matching low halves the rest. No interpolation: the result does not depend on the division into parts.
    """
    high_counts = np.zeros(1 << _LOW_BITS, dtype=np.int64)
    for part in values():
        high_counts += np.bincount(_bits(part) >> _LOW_BITS, minlength=1 << _LOW_BITS)
    ends = np.cumsum(high_counts)
    ranks = [max(1, int(np.ceil(level * ends[-1]))) for level in levels]
    highs = [int(np.searchsorted(ends, rank)) for rank in ranks]
    low_counts = {high: np.zeros(1 << _LOW_BITS, dtype=np.int64) for high in highs}
    for part in values():
        bits = _bits(part)
        for high, counts in low_counts.items():
            inside = bits[bits >> _LOW_BITS == high]
            counts += np.bincount(inside & ((1 << _LOW_BITS) - 1), minlength=1 << _LOW_BITS)
    found = []
    for rank, high in zip(ranks, highs, strict=True):
        below = int(ends[high] - high_counts[high])
        low = int(np.searchsorted(np.cumsum(low_counts[high]), rank - below))
        found.append(float(np.array([high << _LOW_BITS | low], dtype=np.uint32).view(np.float32)[0]))
    return found


def _bits(values: np.ndarray) -> np.ndarray:
    assert values.dtype == np.float32, values.dtype
    return np.ascontiguousarray(values).view(np.uint32).astype(np.int64)
