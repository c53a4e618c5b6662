"""Interface of engines, which update a dictionary, to the loop, the hooks and the trainer."""

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
"""Map from the current full tensor of a parameter to the new one."""


class Engine(Protocol):
    """Updates a dictionary: by DeepSpeed with Adam (`engine`), or by its own statistics (`solver`)."""

    dictionary: Dictionary

    @property
    def device(self) -> torch.device:
        """Device of the dictionary."""

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
        """Gather the parameters, so that the dictionary can be used directly inside the context."""

    def full_parameters(self) -> dict[str, Tensor]:
        """Return the parameters of this rank's latents by name, copied to the host (collective)."""

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the checkpoint state of this rank's latents by key (`lexray.training.checkpoint.parts`).

        Collective: every rank must exhaust the iterator.
        """

    def assign(self, changes: dict[str, Assignment], *, reset_moments: bool = False) -> None:
        """Replace parameters, full tensor by full tensor (collective)."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the optimizer's state from a checkpoint whose weights are loaded already."""
