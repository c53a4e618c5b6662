"""Attempts at one trial: each on newly allocated nodes, until training ends or fails for a reason of its own.

A lost node, or workers that did not fit after all, do not count as failures of the trial; neither does a move to other
nodes. However an attempt ends, the next resumes from the newest valid checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from lexray.tuning.endings.budget import DEADLINE, read_ending
from lexray.tuning.placement.allocator import MeshOptions
from lexray.tuning.ray_backend.allocator_client import AllocatorClient
from lexray.tuning.ray_backend.placer import Placement
from lexray.tuning.sweep_folder import MOVING, SweepFolder
from lexray.tuning.trials import Trial

log = logging.getLogger("lexray")

ASK_EVERY_S = 1.0
"""Seconds between a waiting trial's requests for nodes."""
NOTICE_S = 3.0
"""Seconds that the cluster may need to notice a lost node after a worker's death."""


class NoNodesError(RuntimeError):
    """A trial's nodes did not arrive in `resources.wait_at_most_s`. One line with the cause."""


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """The attempts at a trial and their settings."""

    trial: Trial
    mesh_options: MeshOptions
    allocator: AllocatorClient
    retries: int
    """Failures of the trial itself after which it is given up."""
    is_over: Callable[[], bool]
    """Whether the sweep ends while the trial waits for nodes."""
    sleep: Callable[[float], None] = time.sleep

    def run(self, attempt: Callable[[Placement], str]) -> bool:
        """Call `attempt` until it returns another status than moving; False if the sweep was over before.

        Raises NoNodesError when nodes are missing for too long, and the attempt's error once it failed too often for
        reasons of its own. A node that is lost or draining excuses one failure, since a draining node may stay for
        long.
        """
        failures, excuses = 0, set[str]()
        while (placement := self._nodes()) is not None:
            try:
                if attempt(placement) != MOVING:
                    return True
            except TrainingFailedError as error:
                self.sleep(NOTICE_S)
                lost = self.allocator.lost(self.trial.id)
                if is_of_the_trial(error, [node_id for node_id in lost if node_id not in excuses]):
                    failures += 1
                excuses.update(lost)
                if failures > self.retries:
                    raise
                log.warning("%s is started again: %s", self.trial.name, error)
        return False

    def _nodes(self) -> Placement | None:
        """Wait for the placement of the next attempt; None when the sweep is over."""
        while True:
            placement = self.allocator.take(self.trial.id, self.trial.name, self.mesh_options)
            if placement is not None:
                return placement
            if self.is_over():
                self.allocator.release(self.trial.id)
                return None
            if reason := self.allocator.overdue(self.trial.id):
                raise NoNodesError(reason)
            self.sleep(ASK_EVERY_S)


def is_of_the_trial(error: Exception, lost_nodes: list[str]) -> bool:
    """Return whether a failure is the trial's own, not caused by lost or unavailable nodes."""
    no_room = isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)
    return not lost_nodes and not no_room


def sweep_is_over(folder: SweepFolder, deadline_s: float | None, clock: Callable[[], float] = time.time) -> str:
    """Return the status of a waiting trial when the sweep ends; empty while it continues."""
    return DEADLINE if deadline_s is not None and clock() >= deadline_s else read_ending(folder)
