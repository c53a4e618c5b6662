"""The optimizer of dictionaries that learn by statistics: nothing is differentiated, all state is in buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lexray.training.checkpoint.format import Checkpoint
from lexray.training.checkpoint.parts import WEIGHTS
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.engines.engine import Assignment
from lexray.training.objectives.forward import LossOutput


class StatisticsEngine:
    """Lets a dictionary learn from each batch; every rank does the same with the same sums."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary

    @property
    def device(self) -> torch.device:
        return self.dictionary.input.mean_D.device

    def backward(self, rows: RawRows, total_rows: int) -> LossOutput:
        """Add the batch to the dictionary's statistics and return its loss; nothing is differentiated."""
        return self.dictionary.learn(rows.x_BD, total_rows)

    def step(self, lr: float) -> bool:
        """Do nothing: the batch is learned already."""
        return True

    def gradient_norm(self) -> None:
        """There is no gradient."""

    @contextmanager
    def whole_parameters(self) -> Iterator[None]:
        """They are always whole."""
        yield

    def full_parameters(self) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """The buffers."""
        for name, buffer in self.dictionary.named_buffers():
            yield WEIGHTS + name, buffer

    def assign(self, changes: dict[str, Assignment], *, reset_moments: bool = False) -> None:
        """There is nothing to rewrite."""
        assert not changes

    def restore(self, checkpoint: Checkpoint) -> None:
        """The weights, loaded already, are all there is."""
