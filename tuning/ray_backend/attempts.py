"""Attempts at one trial: each on nodes that are chosen then, until the training ends or fails for a reason of its own.

An attempt whose node is lost, or whose workers found no room after all, is no failure of the trial; neither is one that
saved its state to go on elsewhere. Whatever ends an attempt, the next goes on from the newest valid checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ray.train import TrainingFailedError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from lexray.tuning.endings.ends import DEADLINE, read_ending
from lexray.tuning.placement.allocator import MeshOptions
from lexray.tuning.ray_backend.allocator_client import AllocatorClient
from lexray.tuning.ray_backend.placer import Placement
from lexray.tuning.sweep_folder import MOVING, SweepFolder
from lexray.tuning.trials import Trial

log = logging.getLogger("lexray")

ASK_EVERY_S = 1.0
"""How often a trial without nodes asks for some."""
NOTICE_S = 3.0
"""How long after a worker's death the cluster may need to know that its node is gone."""


class NoNodesError(RuntimeError):
    """Nodes that a trial needs did not arrive in `resources.wait_at_most_s`. One line with the cause."""


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What decides about the attempts at a trial."""

    trial: Trial
    mesh_options: MeshOptions
    allocator: AllocatorClient
    retries: int
    """Failures of its own after which the trial is given up."""
    is_over: Callable[[], bool]
    """Whether the sweep ends while the trial waits for nodes."""
    sleep: Callable[[float], None] = time.sleep

    def run(self, attempt: Callable[[Placement], str]) -> bool:
        """Call `attempt` until it says something else than that the trial moves; False: the sweep was over before.

        Raises NoNodesError when nodes are missing for too long, and the attempt's error once it failed too often for
        reasons of its own. A node that is gone, or is about to go, excuses one failure: it may stay for long after it
        was told to leave.
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
        """Where the next attempt runs, once there is room; None when the sweep is over."""
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
    """Whether the failure of an attempt is the trial's own, and not that of nodes that are gone or were taken."""
    no_room = isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError)
    return not lost_nodes and not no_room


def on_placement(trial: Trial, placement: Placement) -> Trial:
    """The trial with the mesh that it has this time."""
    config = replace(trial.config, mesh=placement.option.mesh)
    return replace(trial, config=config, footprint=placement.option.footprint)


def sweep_is_over(folder: SweepFolder, deadline_s: float | None, clock: Callable[[], float] = time.time) -> str:
    """The status of a trial that waits for nodes when the sweep ends; empty while it goes on."""
    return DEADLINE if deadline_s is not None and clock() >= deadline_s else read_ending(folder)
