"""A step whose loss or gradient is not finite: found on every rank at once, before it changes the dictionary."""

from __future__ import annotations

import math

from torch import Tensor

from lexray.training.mesh.axes import FeatureAxis


class NonFiniteStepError(RuntimeError):
    """A step was not taken, since its loss or gradient is not finite; one line that names step, terms and norm."""


def check_loss(step: int, sums: dict[str, float], norm: Tensor | None, latents: FeatureAxis) -> None:
    """Raise NonFiniteStepError when the loss of a step (counted from 1) is not finite on any rank.

    `sums` are the global batch's, equal along the data axis; `norm` is the gradient norm of the step before.
    """
    is_bad = not math.isfinite(sums["loss"])
    if latents.count(int(is_bad)):
        terms = ", ".join(f"{name} {value:g}" for name, value in sums.items() if not math.isfinite(value))
        before = "" if norm is None else f"; the gradient norm was {float(norm):.3g} a step before"
        raise NonFiniteStepError(f"step {step} is not finite: {terms or 'the loss on another slice'}{before}")


def gradient_error(step: int, sums: dict[str, float], norm: Tensor | None) -> NonFiniteStepError:
    """Return the error for a step (counted from 1) with a finite loss and the gradient norm `norm`."""
    assert norm is not None
    return NonFiniteStepError(f"step {step} is not finite: gradient norm {float(norm):g}; the loss is {sums['loss']:g}")
