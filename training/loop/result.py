"""Result of a training."""

from __future__ import annotations

from typing import NamedTuple

from lexray.training.loop.stopping import Kind


class TrainingResult(NamedTuple):
    """The outcome of a training, equal on every rank but for the reason."""

    metrics: dict[str, float]
    """Metrics of the final dictionary on test rows, which nothing else has read; empty when paused."""
    validation: dict[str, float]
    """The same on the validation rows that steered the training; empty when paused."""
    train_s: float
    """Seconds spent in training steps by this attempt."""
    steps: int
    """Steps done by this attempt: fewer than all after a resume."""
    curve: list[dict[str, float]]
    """Metrics on test rows at other numbers of active latents, `k`, where the architecture offers them."""
    ended: Kind = "done"
    reason: str = ""
    """Why it ended before its last step; known on rank 0."""
