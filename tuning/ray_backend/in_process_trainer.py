"""Ray Train's job of a trial, run by the trial's own process.

Ray Train would start a process for its controller, one for a queue that leads from there to Tune and one for datasets,
anew for each attempt. On a small machine these starts take longer than a short training; the process of the trial does
nothing else meanwhile, and lasts from trial to trial. Its death ends the workers, as the controller's would.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray import tune
from ray.train import Checkpoint, Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.execution.context import TrainRunContext
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.callback import UserCallback


class TrainHere(TorchTrainer):
    """A `TorchTrainer` whose controller runs where `fit` is called: inside an actor, such as a trial of Tune."""

    def _create_default_callbacks(self) -> list[Any]:
        """Leave out the callback that starts a process for Ray Data datasets: trials read windows."""
        assert not self.datasets
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # typed as the one of Train v1
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        assert ray.get_runtime_context().get_actor_id() is not None, "workers know their controller as an actor"
        controller = TrainController(**settings)
        asyncio.run(controller.run())
        return controller.get_result()


class ReportToTune(UserCallback):
    """Forwards the first worker's reports to Tune, from the function that Tune called."""

    def after_report(
        self, run_context: TrainRunContext, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None
    ) -> None:
        """`metrics` are those of each worker, by rank."""
        tune.report(metrics[0])
