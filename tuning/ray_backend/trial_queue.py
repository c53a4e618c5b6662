"""Which trial starts next: in the order of the sweep, as many at once as the cluster has room for.

Ray Train makes its placement groups outside of Tune's accounting, so nodes are claimed here for whole trials. The first
trial in line waits until it fits; none overtakes it, so a wide one is not starved.
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
    """Where trials come from that are chosen late, by what earlier ones measured."""

    @property
    def smallest(self) -> Footprint:
        """What the next one takes at least: it is not chosen before there is room for that."""

    def ask(self) -> list[TrialRun]:
        """The next one, or none if that was all."""


class TrialQueue(Searcher):
    """Hands trials to Tune; `on_change` hears of every start and end. None starts once `is_over` says so."""

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
        """The next trial, None while there is no room for it, FINISHED when all were handed out or none may start."""
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
        """A trial that never got its nodes has failed; run again, the sweep tries it again."""
        self._on_change(run, True)
        run.folder.write_trial(replace(new_record(run.trial, status=FAILED), reason=reason))
        self._allocator.release(run.trial.id)
        self._on_change(run, False)

    # Tune wants to keep searchers for its own way of resuming, which lexray does not use: the sweep's folder knows
    # which trials are finished.

    def __getstate__(self) -> dict:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
