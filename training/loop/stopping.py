"""Whether a training ends before its last step: rank 0 is asked, and all ranks end at the same step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lexray.training.mesh.axes import WorldAxis

Kind = Literal["done", "stopped", "paused"]
"""`stopped` for good, with a dictionary; `paused` with a checkpoint from which another run goes on."""


class Ending(NamedTuple):
    """Kind of a training's end, and its reason."""

    kind: Kind
    reason: str
    """Why before its last step; known on rank 0."""


DONE = Ending("done", "")


@dataclass(frozen=True)
class StopCheck:
    """Asks every so many steps whether the training ends there."""

    kind: Kind
    every: int
    num_steps: int
    should_end: Callable[[], str] | None
    """Returns why the training ends here, empty to go on; called on rank 0 alone, None on the others."""
    ranks: WorldAxis

    def __call__(self, step: int) -> Ending | None:
        """Return how the training ends after `step`, None to go on. Every rank calls it."""
        if step % self.every or step >= self.num_steps:
            return None
        reason = self.should_end() if self.should_end is not None else ""
        return Ending(self.kind, reason) if self.ranks.count(int(bool(reason))) else None
