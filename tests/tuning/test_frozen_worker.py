"""A worker of a real sweep that is frozen: the other one names it, Ray starts both again, the result is the same."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.store import Store
from lexray.training.checkpoint.format import checkpoint_folders, step_of
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.timeouts, pytest.mark.timeout(900)]

STEPS, SAVED_EVERY, TIMEOUT_S = 600, 20, 10


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("frozen") / "data")


def planned(data: str, out: Path, retries: int) -> SweepPlan:
    """A sweep of one trial on two workers."""
    content = sweep_content(
        data,
        str(out),
        axes={"architecture": ["batch_topk"], "width": [64], "target_l0": [4]},
        training={"rows": 128 * STEPS, "lr": 0.003},
        every={"log": SAVED_EVERY, "evaluate": 10 * SAVED_EVERY, "checkpoint": SAVED_EVERY},
        resources={"workers": 2, "timeout_s": TIMEOUT_S},
        retries=retries,
        wandb={"mode": "disabled"},
    )
    file = write_sweep(out.parent / f"{out.name}-{retries}.yaml", content)
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


class Freezer(threading.Thread):
    """Stops a worker of a training once that has saved something new."""

    def __init__(self, checkpoints: Path) -> None:
        super().__init__(daemon=True)
        self.checkpoints, self.over = checkpoints, threading.Event()
        self.frozen: psutil.Process | None = None

    def newest(self) -> int:
        folders = checkpoint_folders(Store.at(str(self.checkpoints))) if self.checkpoints.exists() else []
        whole = [folder for folder in folders if (self.checkpoints / folder / "manifest.json").exists()]
        return max((step_of(folder) or 0 for folder in whole), default=0)

    def run(self) -> None:
        start = self.newest()
        while not self.over.wait(0.02):
            if self.newest() > start:
                self.frozen = next(
                    process
                    for process in psutil.Process(os.getpid()).children(recursive=True)
                    if "RayTrainWorker" in " ".join(process.cmdline())
                )
                self.frozen.suspend()
                return

    def __enter__(self) -> Freezer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


def test_a_frozen_worker_is_named_and_the_trial_goes_on_to_the_same_weights(data: str, ray_session, tmp_path: Path):
    undisturbed = planned(data, tmp_path / "undisturbed", retries=0)
    run_sweep(undisturbed, [])
    trial = f"trials/{undisturbed.trials[0].id}"
    out = tmp_path / "frozen"

    with Freezer(out / trial / "checkpoints") as freezer:
        (failed,) = run_sweep(planned(data, out, retries=0), []).to_dict("records")
    assert freezer.frozen is not None
    assert failed["status"] == "failed"
    said = re.fullmatch(
        r"RankSilentError: rank [01] (on \S+ has been silent for (\d+) s, since step (\d+)|gives no sign of life)",
        failed["reason"],
    )
    assert said, failed["reason"]
    psutil.wait_procs([freezer.frozen], timeout=60)
    assert not freezer.frozen.is_running(), "Ray ended the worker that hung"

    saved = freezer.newest()
    assert 0 < saved < STEPS
    with Freezer(out / trial / "checkpoints") as freezer:
        (done,) = run_sweep(planned(data, out, retries=1), []).to_dict("records")
    assert freezer.frozen is not None
    assert done["status"] in ("done", "target missed"), done["reason"]
    found, expected = (
        load_file(folder / trial / "dictionary" / "dictionary.safetensors")
        for folder in (out, tmp_path / "undisturbed")
    )
    assert found.keys() == expected.keys()
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
