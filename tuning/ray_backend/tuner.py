"""Ray Tune as the loop over a sweep's trials: it calls a function for each that the queue hands out."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from ray import tune

from lexray.storage.store import Store
from lexray.tuning.placement.nodes import DRIVER_BYTES
from lexray.tuning.ray_backend.placer import ON_HEAD
from lexray.tuning.ray_backend.trial_queue import TrialQueue

Work = Callable[[dict[str, Any]], None]
"""A function for Tune, which finds the trial's `TrialRun` under `run`."""


def tune_trials(work: Work, queue: TrialQueue, *, num_trials: int, retries: int, storage_path: str) -> None:
    """Run `work` for each trial of the queue; `storage_path` holds Ray's own files and is removed at the end."""
    # A trial's function only waits for its workers, whose CPUs the placer counts: all it takes itself is memory, of the
    # node that stays as long as the cluster.
    trainable = tune.with_resources(work, tune.PlacementGroupFactory([{"memory": DRIVER_BYTES, **ON_HEAD}]))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(search_alg=queue, num_samples=num_trials, reuse_actors=True),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=storage_path,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=retries),
        ),
    )
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):  # Tune prints even with verbose=0
            tuner.fit()
    finally:
        shutil.rmtree(storage_path, ignore_errors=True)  # names this machine, and nothing reads it again


def ray_storage_path(store: Store) -> str:
    """Return a folder for Ray's own files, a cache: beside a local sweep, else on this machine, one for each run."""
    if store.local_path is not None:
        return str(Path(store.local_path) / ".ray")
    cache = Path("~/.cache/lexray/ray").expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=cache)
    except OSError:
        return tempfile.mkdtemp(prefix="lexray-ray-")


logging.getLogger("ray.tune").setLevel(logging.ERROR)
logging.getLogger("ray.train").setLevel(logging.ERROR)
