"""The standard error of an FVU over documents, and of the difference of two FVUs on the same documents.

Rows of one document are alike, so rows are no independent draws: documents are. The bootstrap draws as many documents
with replacement as there are, and its standard deviation is the standard error (Efron and Tibshirani, An introduction
to the bootstrap, 1993, section 6.2). Every dictionary gets the same draws, so that differences are paired.

Shapes: N rows, P documents, R resamples, S sites.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 200
"""Number of resamples: enough for a standard error that is itself within 5 %."""
TIE_ERRORS = 2
"""Standard errors of a difference up to which two values count as tied."""
_DIGITS = 7

Floats = npt.NDArray[np.float64]


class RowSquares(NamedTuple):
    """Numerators and denominators of an FVU, by row."""

    errors_SN: Floats
    """Squared errors of the reconstructions."""
    distances_SN: Floats
    """Squared distances from the dataset's mean."""

    def by_document(self, documents_N: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], RowSquares]:
        """Return the distinct documents (P), ascending, and the sums of their rows."""
        distinct_P, index_N = np.unique(documents_N, return_inverse=True)

        def summed(values_SN: Floats) -> Floats:
            return np.stack(
                [np.bincount(index_N, weights=values_N, minlength=len(distinct_P)) for values_N in values_SN]
            )

        return distinct_P, RowSquares(summed(self.errors_SN), summed(self.distances_SN))


def fvu_resamples(squares_SP: RowSquares, count: int = RESAMPLES) -> Floats:
    """Return the FVU of each resample (R) of documents, the mean over sites; NaN where its rows have no variance.

    Distances are from the dataset's mean here, from that of the rows in `metrics.evaluate`: of many documents these
    hardly differ.
    """
    generator, documents = np.random.default_rng(0), squares_SP.errors_SN.shape[1]
    values = np.empty(count)
    for number in range(count):
        picks = generator.integers(documents, size=documents)
        weights_P = np.bincount(picks, minlength=documents).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            values[number] = ((squares_SP.errors_SN @ weights_P) / (squares_SP.distances_SN @ weights_P)).mean()
    return values


def document_section(squares: RowSquares, documents_N: npt.NDArray[np.integer]) -> dict[str, Any]:
    """Return the section `documents` of `measures.json`; without values for a single document, which has no spread."""
    distinct_P, sums = squares.by_document(documents_N)
    section: dict[str, Any] = {"count": len(distinct_P), "hash": hash_of(documents_N)}
    if len(distinct_P) < 2:
        return section
    values = fvu_resamples(sums)
    return section | {
        "fvu_error": float(values.std(ddof=1)),
        "fvu_resamples": [float(f"{value:.{_DIGITS}g}") for value in values],
    }


def hash_of(documents_N: npt.NDArray[np.integer]) -> str:
    """Return 16 hexadecimal digits that tell whether two dictionaries were measured on as many rows of the same
    documents.
    """
    pairs = np.stack(np.unique(documents_N, return_counts=True)).astype("<i8")
    return hashlib.sha256(pairs.tobytes()).hexdigest()[:16]


def difference_error(first: Mapping[str, Any] | None, second: Mapping[str, Any] | None) -> float:
    """Return the standard error of the difference of two FVUs from their sections `documents`.

    Of the same documents it is that of the paired difference; of others, that of independent values. NaN where one has
    no standard error.
    """
    if first is None or second is None:
        return math.nan
    errors = [section.get("fvu_error") for section in (first, second)]
    if errors[0] is None or errors[1] is None:
        return math.nan
    resamples = [np.array(section.get("fvu_resamples") or [], dtype=np.float64) for section in (first, second)]
    if first.get("hash") == second.get("hash") and len(resamples[0]) == len(resamples[1]) > 1:
        return float(np.subtract(*resamples).std(ddof=1))
    return math.hypot(errors[0], errors[1])
