"""Drive a sparsity coefficient to a target L0."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ControllerGains:
    """Gains of the controller, tuned so that L0 neither oscillates nor lags in trainings of a few hundred steps."""

    gain: float = 0.06
    """Change of log(coefficient) per step and unit of log(l0 / target)."""
    limit: float = 0.5
    """Bound on log(l0 / target), so that the coefficient does not wind up before the weights respond."""


class L0Controller(nn.Module):
    """An integral controller on the logarithms: too many active latents raise the coefficient, too few lower it.

        log c += gain * clip(log(ratio * l0 / target), -limit, limit)      after every step

    Logarithms, because both quantities span orders of magnitude and L0 falls roughly as a power of the coefficient.
    `ratio` is the L0 of validation rows over that of training rows, measured by each evaluation: on data that is read
    several times unseen rows activate a few percent more latents than seen ones, and the target applies to unseen
    rows. No other information from validation rows enters training.

    The state is three buffers, so checkpoints include it.
    """

    log_coefficient: Tensor
    log_ratio: Tensor
    batch_l0: Tensor

    def __init__(self, target_l0: float, initial_coefficient: float, gains: ControllerGains | None = None) -> None:
        super().__init__()
        self.target_l0, self.gains = target_l0, gains or ControllerGains()
        for name, value in (
            ("log_coefficient", math.log(initial_coefficient)),
            ("log_ratio", 0.0),
            ("batch_l0", 0.0),
        ):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64))

    @property
    def coefficient(self) -> Tensor:
        """Coefficient of the penalty (scalar, float32)."""
        return self.log_coefficient.exp().float()

    def after_step(self, l0: float) -> None:
        """Move the coefficient, given the batch's mean L0 over all ranks."""
        self.batch_l0.fill_(l0)
        error = math.log(max(l0, 1e-3) / self.target_l0) + float(self.log_ratio)
        self.log_coefficient.add_(self.gains.gain * max(-self.gains.limit, min(self.gains.limit, error)))

    def after_evaluation(self, held_out_l0: float) -> None:
        """Update the ratio as the mean of the last and the new estimate, as a batch's L0 is noisy."""
        if float(self.batch_l0) > 0 and held_out_l0 > 0:
            measured = math.log(held_out_l0 / float(self.batch_l0))
            self.log_ratio.mul_(0.5).add_(0.5 * measured)
