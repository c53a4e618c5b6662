"""Which trial starts next: in the order of the sweep, as many at once as the cluster has room for.

Ray Train makes its placement groups outside of Tune's accounting, so the room is counted here from the footprint of
whole trials. The first trial in line waits until it fits; none overtakes it, so a wide one is not starved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ray.tune.search import Searcher

from storage.errors import UserError
from tuning.trial import TrialRun
from tuning.trials import Footprint, Trial


@dataclass(frozen=True)
class Node:
    """What one node of the cluster offers to workers."""

    cpus: float
    gpus: float
    memory_bytes: float = 0.0
    """Of processes; Ray's object store is not among it."""

    def workers(self, footprint: Footprint) -> int:
        """How many workers of a trial fit on this node when it is empty."""
        by_cpu = self.cpus // footprint.cpus_per_worker
        by_gpu = self.gpus // footprint.gpus_per_worker if footprint.gpus_per_worker else by_cpu
        return int(min(by_cpu, by_gpu))


def refuse_what_never_fits(trials: list[Trial], nodes: list[Node]) -> None:
    """Raise UserError for the first trial that the cluster has no room for even when it is empty."""
    for trial in trials:
        footprint = trial.footprint
        fitting = sum(node.workers(footprint) for node in nodes)
        if fitting < footprint.workers:
            wants = f"{footprint.workers} workers of {footprint.cpus_per_worker:g} CPU"
            if footprint.gpus_per_worker:
                wants += f" and {footprint.gpus_per_worker:g} GPU"
            has = f"{sum(n.cpus for n in nodes):g} CPU, {sum(n.gpus for n in nodes):g} GPU on {len(nodes)} node(s)"
            raise UserError(
                f"resources.workers: trial {trial.name} wants {wants}, but the cluster ({has}) has room for {fitting}; "
                "lower resources.workers or resources.cpus_per_worker"
            )


class TrialQueue(Searcher):
    """Hands trials to Tune; `on_change` hears of every start and end. None starts once `is_over` says so."""

    def __init__(
        self,
        runs: list[TrialRun],
        nodes: list[Node],
        on_change: Callable[[TrialRun, bool], None],
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric="eval/fvu", mode="min")
        self._waiting = list(reversed(runs))
        self._running: dict[str, TrialRun] = {}
        self._cpus = sum(node.cpus for node in nodes)
        self._gpus = sum(node.gpus for node in nodes)
        self._on_change, self._is_over = on_change, is_over

    def suggest(self, trial_id: str) -> dict | None:
        """The next trial, None while there is no room for it, FINISHED when all were handed out or none may start."""
        if not self._waiting or self._is_over():
            return Searcher.FINISHED  # type: ignore[return-value]
        if not self._has_room(self._waiting[-1].trial.footprint):
            return None
        run = self._running[trial_id] = self._waiting.pop()
        self._on_change(run, True)
        return {"run": run}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        run = self._running.pop(trial_id, None)
        if run is not None:
            self._on_change(run, False)

    def _has_room(self, footprint: Footprint) -> bool:
        running = [run.trial.footprint for run in self._running.values()]
        cpus = footprint.cpus + sum(other.cpus for other in running)
        gpus = footprint.gpus + sum(other.gpus for other in running)
        return cpus <= self._cpus + 1e-6 and gpus <= self._gpus + 1e-6

    # Tune wants to keep searchers for its own way of resuming, which lexray does not use: the sweep's folder knows
    # which trials are finished.

    def __getstate__(self) -> dict:
        return {}

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass
