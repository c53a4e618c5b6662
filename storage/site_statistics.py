"""Statistics of a site's rows, and checks of them: NaN and Inf, equal rows, unusual norms, the manifest's statistics.

Sums are accumulated by shard or chunk; quantiles of the norms are exact.

Legend of shapes: B rows of a chunk, N rows of the dataset, D width of a site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from lexray.storage.manifest import Site

QUANTILE_LEVELS = (0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)
"""Levels of the norm quantiles in a manifest."""
_LOW_BITS = 16
SHOWN_ROWS = 5
"""Maximum rows of a kind that are listed."""
OUTLIER_SIGMAS = 6.0
"""Robust standard deviations of the logarithm of the norm beyond which a row is an outlier."""
MIN_LOG_SIGMA = 1e-3
"""Minimum standard deviation of the logarithm, for rows of (nearly) one length."""


@dataclass(frozen=True, kw_only=True)
class ChunkFacts:
    """Statistics of one chunk of a site, merged into the site's findings."""

    hashes: np.ndarray
    """Hash of each row (B), uint64."""
    norms: np.ndarray
    """Norm of each row (B), float64; NaN where a value is not finite."""
    total: np.ndarray
    """Sum of the finite rows (D), float64."""
    squared_norm: float
    """Sum of the finite rows' squared norms, float64."""


@dataclass(frozen=True, kw_only=True)
class SiteFindings:
    """Findings on the readable rows of a site; rows are indices in the dataset."""

    width: int
    dtype: str
    rows: int
    """Rows that could be read."""
    not_finite: int
    duplicates: int
    """Rows whose bytes (by their 64-bit hash) are those of an earlier row."""
    duplicate_rows: list[int]
    """First of the duplicate rows."""
    outliers: int
    norm_bounds: tuple[float, float]
    """Bounds outside of which norms are outliers, see `norm_bounds`."""
    worst: list[tuple[int, float]]
    """Most extreme outliers: (row, norm)."""
    mean_error: float | None
    """Distance of the manifest's mean from the rows', over the root mean squared norm; None when rows are missing."""
    mean_squared_norm_error: float | None
    """Relative error of the manifest's mean squared norm; None when rows are missing."""
    quantiles_error: float | None
    """Maximum relative error of the manifest's norm quantiles; None when rows are missing."""


class SiteFacts:
    """Sums of a site of `rows` rows, accumulated in chunk order so that they do not depend on threads."""

    def __init__(self, site: Site, rows: int) -> None:
        self.site = site
        self.hashes, self.norms = np.zeros(rows, np.uint64), np.zeros(rows)
        self.read = np.zeros(rows, dtype=bool)
        """Mask of rows that could be read (N)."""
        self.total, self.squared_norm = np.zeros(site.width), 0.0

    def add(self, first_row: int, facts: ChunkFacts) -> None:
        rows = slice(first_row, first_row + len(facts.norms))
        self.hashes[rows], self.norms[rows], self.read[rows] = facts.hashes, facts.norms, True
        self.total += facts.total
        self.squared_norm += facts.squared_norm

    def findings(self) -> SiteFindings:
        finite = np.flatnonzero(self.read & np.isfinite(self.norms))
        repeated = repeated_rows(self.hashes[self.read])
        bounds = norm_bounds(self.norms[finite])
        worst = outliers(self.norms[finite], bounds)
        mean_error, squared_error, quantiles_error = self._statistics_errors(len(finite))
        return SiteFindings(
            width=self.site.width,
            dtype=self.site.dtype,
            rows=int(self.read.sum()),
            not_finite=int(self.read.sum()) - len(finite),
            duplicates=len(repeated),
            duplicate_rows=np.flatnonzero(self.read)[repeated[:SHOWN_ROWS]].tolist(),
            outliers=len(worst),
            norm_bounds=bounds,
            worst=[(int(row), float(self.norms[row])) for row in finite[worst[:SHOWN_ROWS]]],
            mean_error=mean_error,
            mean_squared_norm_error=squared_error,
            quantiles_error=quantiles_error,
        )

    def _statistics_errors(self, finite_rows: int) -> tuple[float | None, float | None, float | None]:
        if finite_rows < len(self.read) or len(self.site.mean) != self.site.width:
            return None, None, None
        mean, squared = self.total / finite_rows, self.squared_norm / finite_rows
        scale = squared or 1.0
        distance = float(np.linalg.norm(mean - np.array(self.site.mean)))
        levels, told = zip(*self.site.norm_quantiles.items(), strict=True)
        found = exact_quantiles(lambda: [self.norms.astype(np.float32)], [float(level) for level in levels])
        quantiles = max(abs(a - b) / (b or 1.0) for a, b in zip(told, found, strict=True))
        return distance / math.sqrt(scale), abs(squared - self.site.mean_squared_norm) / scale, quantiles


def chunk_facts(x_BD: np.ndarray, dtype: str) -> ChunkFacts:
    """Compute the statistics of a chunk; bfloat16 is passed as uint16."""
    data, row_bytes = np.ascontiguousarray(x_BD).data.cast("B"), x_BD.itemsize * x_BD.shape[1]
    hashes = [xxhash.xxh3_64_intdigest(data[start : start + row_bytes]) for start in range(0, len(data), row_bytes)]
    values_BD = _as_float64(x_BD, dtype)
    finite_B = np.isfinite(values_BD).all(1)
    values_BD[~finite_B] = 0
    squared_B = np.einsum("bd,bd->b", values_BD, values_BD)
    return ChunkFacts(
        hashes=np.array(hashes, dtype=np.uint64),
        norms=np.where(finite_B, np.sqrt(squared_B), np.nan),
        total=values_BD.sum(0),
        squared_norm=float(squared_B.sum()),
    )


def repeated_rows(hashes: np.ndarray) -> np.ndarray:
    """Return the indices of rows whose hash (N) equals an earlier row's, ascending."""
    _, first = np.unique(hashes, return_index=True)
    return np.delete(np.arange(len(hashes)), first)


def norm_bounds(norms: np.ndarray) -> tuple[float, float]:
    """Return the bounds of norms that are not outliers among finite norms (N).

    On the logarithm, since norms vary by factors: median -+ `OUTLIER_SIGMAS` * 1.4826 * MAD, where 1.4826 scales the
    median absolute deviation (MAD) to the standard deviation of a normal distribution. Zeros are excluded.
    """
    logs = np.log(norms[norms > 0])
    if not len(logs):
        return 0.0, 0.0
    middle = float(np.median(logs))
    sigma = max(MIN_LOG_SIGMA, 1.4826 * float(np.median(np.abs(logs - middle))))
    low, high = np.exp(np.clip([middle - OUTLIER_SIGMAS * sigma, middle + OUTLIER_SIGMAS * sigma], -700, 700))
    return float(low), float(high)


def outliers(norms: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Return the indices of norms (N) outside the bounds, the largest factor beyond them first."""
    low, high = bounds
    outside = np.flatnonzero((norms < low) | (norms > high))
    with np.errstate(divide="ignore"):  # a zero norm is below by an infinite factor
        beyond = np.abs(np.log(norms[outside]) - (np.log(low) + np.log(high)) / 2)
    return outside[np.argsort(-beyond, kind="stable")]


def _as_float64(x_BD: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return x_BD.astype(np.float64)
    return torch.from_numpy(x_BD.copy()).view(torch.bfloat16).double().numpy()


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
