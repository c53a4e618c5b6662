"""Starts trials in the order of the sweep, as many at once as the cluster can hold.

Ray Train makes its placement groups outside of Tune's accounting, so nodes are claimed here for whole trials. The first
trial in line waits until it fits; none overtakes it, so that a wide one is not starved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from ray.tune.search import Searcher

from lexray.tuning.ray_backend.allocator_client import AllocatorClient
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.records import new_record
from lexray.tuning.sweep_folder import FAILED
from lexray.tuning.trials import Footprint


class Source(Protocol):
    """A source of trials that are proposed late, from the results of earlier ones."""

    @property
    def smallest(self) -> Footprint:
        """Minimum resources of the next trial: it is not proposed before they are free."""

    def ask(self) -> list[TrialRun]:
        """Return the next trial in a list; an empty list if there is none."""


class TrialQueue(Searcher):
    """Supplies trials to Tune; `on_change` is called on every start and end. None starts once `is_over` is true."""

    def __init__(
        self,
        runs: list[TrialRun],
        allocator: AllocatorClient,
        on_change: Callable[[TrialRun, bool], None],
        is_over: Callable[[], bool] = lambda: False,
        source: Source | None = None,
    ) -> None:
        super().__init__(metric="eval/fvu", mode="min")
        self._waiting = list(reversed(runs))
        self._running: dict[str, TrialRun] = {}
        self._allocator = allocator
        self._on_change, self._is_over, self._source = on_change, is_over, source

    def suggest(self, trial_id: str) -> dict | None:
        """Return the next trial, None while it does not fit, FINISHED if all have started or none may start."""
        if self._is_over():
            return Searcher.FINISHED  # type: ignore[return-value]
        if not self._waiting and self._source is not None:
            # With none running nothing more will be known, and only a trial that waits makes an autoscaler add nodes.
            if self._running and not self._allocator.has_room(self._source.smallest):
                return None
            self._waiting += self._source.ask()
        if not self._waiting:
            return Searcher.FINISHED  # type: ignore[return-value]
        first = self._waiting[-1]
        if not self._allocator.claim(first.trial.id, first.trial.name, first.meshes):
            if reason := self._allocator.overdue(first.trial.id):
                self._give_up(self._waiting.pop(), reason)
            return None
        run = self._running[trial_id] = self._waiting.pop()
        self._on_change(run, True)
        return {"run": run}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        run = self._running.pop(trial_id, None)
        if run is not None:
            self._allocator.release(run.trial.id)
            self._on_change(run, False)

    def _give_up(self, run: TrialRun, reason: str) -> None:
        """Mark a trial that never got its nodes as failed; a rerun of the sweep retries it."""
        self._on_change(run, True)
        run.folder.write_trial(replace(new_record(run.trial, status=FAILED), reason=reason))
        self._allocator.release(run.trial.id)
        self._on_change(run, False)

    # Tune saves searchers for its own way of resuming, which lexray does not use: the sweep's folder records which
    # trials are finished.

    def __getstate__(self) -> dict:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
