"""Drive a sparsity coefficient to a target L0."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class L0Controller:
    """An integral controller on the logarithms: too many active latents raise the coefficient, too few lower it.

    Per step: log c += gain * clip(log(l0 / target), -limit, limit). Logarithms, because both quantities span orders of
    magnitude and L0 falls roughly as a power of the coefficient; the limit keeps the coefficient from running far
    ahead of weights that need time to follow.
    """

    target: float
    gain: float = 0.03
    limit: float = 1.0

    def next(self, log_coefficient: float, l0: float) -> float:
        """The coefficient's logarithm for the next step, from this step's mean L0 over the global batch."""
        error = math.log(max(l0, 1e-3) / self.target)
        return log_coefficient + self.gain * max(-self.limit, min(self.limit, error))
