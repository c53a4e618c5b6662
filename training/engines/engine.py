"""What changes a dictionary: the interface that the loop, the hooks and the trainer see."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from lexray.training.checkpoint.format import Checkpoint
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.objectives.forward import LossOutput

Assignment = Callable[[Tensor], Tensor]
"""A whole parameter as it is to one as it shall be."""


class Engine(Protocol):
    """Changes a dictionary: DeepSpeed with Adam (`engine`), or sums of its own (`solver`)."""

    dictionary: Dictionary

    @property
    def device(self) -> torch.device:
        """Where the dictionary lies."""

    def backward(self, rows: RawRows, total_rows: int) -> LossOutput:
        """Compute the loss of this rank's rows of a global batch, and what `step` needs. Every rank calls it."""

    def step(self, lr: float) -> bool:
        """Change the dictionary. Return False, on every rank and with nothing changed, when the gradient's norm is not
        finite. Every rank calls it."""

    def gradient_norm(self) -> Tensor | None:
        """Return the norm of the last step's gradient before clipping, over the whole mesh and the same on every rank.

        None before the first step, and where nothing is differentiated. Reading the scalar waits for the device.
        """

    def whole_parameters(self) -> AbstractContextManager[None]:
        """Inside, the dictionary can be used directly on this rank."""

    def full_parameters(self) -> dict[str, Tensor]:
        """Parameters of this rank's latents by name, copied to the host. Every rank calls it."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """All that a checkpoint must have, of this rank's latents, by key (`lexray.training.checkpoint.parts`).

        Every rank goes through all of it.
        """

    def assign(self, changes: dict[str, Assignment], *, reset_moments: bool = False) -> None:
        """Change parameters from outside, whole tensor to whole tensor. Every rank calls it."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint whose weights are in the dictionary already."""
