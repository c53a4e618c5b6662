"""Random numbers and sums that are the same to the bit on every machine, whatever its kernels and number of threads.

Random words are raw output of numpy's SFC64, whose stream numpy does not change. Normal numbers are quantiles from a
table, not a library's function. Factors of a sum are rounded to powers of two coarse enough that every partial sum is a
float32 without rounding: then no order of summation, and no fused multiply-add, changes a bit.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

STANDARD = NormalDist()
QUANTILES = 2**16
"""Normal numbers take this many values, of equal probability; the largest is 4.33."""

assert sys.byteorder == "little", "random words are cut into halves as little-endian machines store them"


@cache
def normal_quantiles() -> np.ndarray:
    """Return the quantiles of the standard normal distribution at (k + 1/2) / QUANTILES, float64."""
    lower = [STANDARD.inv_cdf((k + 0.5) / QUANTILES) for k in range(QUANTILES // 2)]
    table = np.array([*lower, *(-value for value in reversed(lower))])
    table.flags.writeable = False
    return table


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    """Round to multiples of `step`, a power of two."""
    return np.rint(values / step) * step


class Words:
    """A stream of random words, seeded by words of 32 bits."""

    def __init__(self, entropy: Sequence[int]) -> None:
        self._bits = np.random.SFC64(np.random.SeedSequence(list(entropy)))

    def uint16(self, *shape: int) -> np.ndarray:
        return self._draw(shape, np.uint16)

    def uint32(self, *shape: int) -> np.ndarray:
        return self._draw(shape, np.uint32)

    def normal(self, *shape: int) -> np.ndarray:
        """Standard normal numbers of the given shape, float64."""
        return normal_quantiles()[self.uint16(*shape)]

    def _draw(self, shape: tuple[int, ...], dtype: type[np.unsignedinteger]) -> np.ndarray:
        count, per_word = int(np.prod(shape)), 8 // np.dtype(dtype).itemsize
        words: np.ndarray = self._bits.random_raw(-(-count // per_word))
        return words.view(dtype)[:count].reshape(shape)
