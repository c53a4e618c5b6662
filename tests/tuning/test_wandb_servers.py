"""Servers of W&B's, good and bad: what is shown is what was logged, without gaps, and nobody waits for long."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from typer.testing import CliRunner
from wandb_server import KEY, KeptRun, Mood, WandbServer, wandb_server

from lexray.cluster.cli import app
from lexray.storage.store import Store
from lexray.training.loop.metrics_log import MetricsLog
from lexray.tuning.results.report import build_results
from lexray.tuning.sweep_folder import DONE, SweepFolder, TrialRecord
from lexray.tuning.views import wandb_runs
from lexray.tuning.views.wandb_ids import RunIds
from lexray.tuning.views.wandb_mirror import WandbMirror
from lexray.tuning.views.wandb_runs import Described, WandbRuns

# W&B's own threads complain when its connection is closed before they have ended.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

ROOT = Path(__file__).parents[2]
RESULT = {"l0": 4.0, "fvu": 0.25, "explained_variance": 0.7, "dead_fraction": 0.0}
RECORDS = [{"step": step, "rows": 128 * step, "train/loss": 1 / step} for step in range(10, 210, 10)]
STEPS = [record["step"] for record in RECORDS]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server that this process's W&B knows as its own."""
    wandb.teardown()
    with wandb_server() as made:
        monkeypatch.setenv("WANDB_BASE_URL", made.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield made
        made.released.set()
        leave_wandb()


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A finished sweep of one trial, with everything that it logged."""
    made = SweepFolder(Store.at(str(tmp_path / "sweep")))
    made.store.write("sweep.yaml", b"name: small\nwandb: {project: mine}\n")
    config = {"dictionary": {"architecture": "topk", "width": 64, "target_l0": 4}, "data": {"inputs": ["site"]}}
    made.write_trial(TrialRecord(trial="a", name="topk-a", config=config, status=DONE, result=RESULT))
    log = MetricsLog(store=made.trial_store("a"))
    for record in RECORDS:
        log.add(record)
    log.flush()
    build_results(made, ["a"])
    return made


def runs_in(place: Path, folder: SweepFolder | None = None, **options: Any) -> WandbRuns:
    """Runs of the sweep in `folder`, or of some other sweep."""
    ids = RunIds("some") if folder is None else RunIds.of_folder(folder.store)
    return WandbRuns(ids=lambda: ids, project="p", group="g", folder=str(place), mode="online", **options)


def kept(server: WandbServer, runs: WandbRuns, trial: str = "a") -> KeptRun:
    return server.runs[runs._ids.of_trial(trial)]


def run_of(trial: str) -> Any:
    config, footprint = SimpleNamespace(to_dict=dict), SimpleNamespace(workers=1)
    return SimpleNamespace(trial=SimpleNamespace(id=trial, name=trial, config=config, footprint=footprint))


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Fails loudly when it does not come in a minute."""
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail(f"{what} did not come")


def leave_wandb() -> None:
    """As a process that ends: what it has under way does not go on in the next one."""
    for thread in threading.enumerate():
        if thread.name == "W&B":
            thread.join()
    wandb.teardown()


def sync(folder: SweepFolder) -> None:
    done = CliRunner().invoke(app, ["wandb", "sync", str(folder.store.local_path), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    assert json.loads(done.stdout)["records"] == {"topk-a": len(RECORDS)}


def test_a_run_that_goes_on_is_the_same_run_with_everything_once(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for records in (RECORDS[:7], RECORDS):  # a resumed trial's log begins anew
        runs = runs_in(tmp_path)
        runs.start(Described("a", "topk-a", {"rows": 1}, 1))
        runs.log("a", records)
        runs.finish("a", TrialRecord(trial="a", name="a", config={}, status=DONE, result=RESULT))
    assert list(server.runs) == ["a-some"]
    assert kept(server, runs).rows == RECORDS
    assert kept(server, runs).attributes["groupName"] == "g"
    assert kept(server, runs).completions == 2
    assert "Tried to log to step" not in capfd.readouterr().err  # W&B's complaint of steps that it has


def test_equal_trials_of_two_sweeps_are_runs_of_their_own(
    server: WandbServer, folder: SweepFolder, tmp_path: Path
) -> None:
    copy = SweepFolder(Store.at(str(tmp_path / "copy")))
    shutil.copytree(str(folder.store.local_path), str(copy.store.local_path))
    RunIds.of_folder(folder.store)  # the copy gets the random number of the first folder
    shutil.copy(f"{folder.store.local_path}/wandb.json", f"{copy.store.local_path}/wandb.json")
    made = [(runs_in(tmp_path, folder), RECORDS), (runs_in(tmp_path, copy), RECORDS[:3])]
    for number, (runs, records) in enumerate(made):
        runs.group = f"sweep {number}"
        runs.start(Described("a", "topk-a", {"rows": 1}, 1))
        runs.log("a", records)
        runs.finish("a", None)
    for number, (runs, records) in enumerate(made):
        assert kept(server, runs).rows == records
        assert kept(server, runs).attributes["groupName"] == f"sweep {number}"
    assert len(server.runs) == 2


def test_a_run_that_the_server_refuses_leaves_the_others_online(
    server: WandbServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = runs_in(tmp_path)
    server.refused.add(runs._ids.of_trial("b"))
    for trial in ("a", "b", "c", "b", "d"):
        runs.start(Described(trial, trial, {}, 1))
        runs.log(trial, RECORDS)
        runs.finish(trial, None)
    assert {trial for trial in "abcd" if runs._ids.of_trial(trial) in server.runs} == {"a", "c", "d"}
    assert all(kept(server, runs, trial).rows == RECORDS for trial in "acd")
    assert caplog.text.count("W&B does not take the run b") == 2
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


def test_a_sync_sends_the_other_runs_and_names_the_refused_one(server: WandbServer, folder: SweepFolder) -> None:
    ids = RunIds.of_folder(folder.store)
    record = folder.read_trial("a")
    assert record is not None
    folder.write_trial(replace(record, trial="b", name="topk-b"))
    server.refused.add(ids.of_trial("a"))
    done = CliRunner().invoke(app, ["wandb", "sync", str(folder.store.local_path), "--json"])
    assert done.exit_code == 1
    assert list(json.loads(done.stdout)["records"]) == ["topk-b"]
    assert list(json.loads(done.stdout)["refused"]) == ["topk-a"]
    assert {ids.of_trial("b"), ids.of_sweep} == set(server.runs)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_what_a_server_lacks_comes_with_a_sync(server: WandbServer, folder: SweepFolder, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, folder)
    runs.start(Described("a", "topk-a", {}, 1))
    runs.log("a", RECORDS[:5])
    runs.finish_all()
    assert kept(server, runs).steps == STEPS[:5]
    sync(folder)
    sync(folder)  # it may be called again
    assert kept(server, runs).rows == RECORDS
    assert len(server.runs) == 2  # the sweep's own


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mood", ["dead", "hanging", "limiting"])
def test_a_server_that_turns_bad_is_waited_for_in_bounds_and_a_sync_leaves_no_gap(
    server: WandbServer, folder: SweepFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture, mood: str
) -> None:
    mirror = WandbMirror(runs=runs_in(tmp_path, folder, finish_timeout_s=2), patience_s=2)
    mirror.started(run_of("a"))
    mirror.logged(run_of("a"), RECORDS[:5])
    wait_for(lambda: server.asked["file_stream"], "the first part of the run")
    turn(server, mood)
    mirror.logged(run_of("a"), RECORDS[5:])
    mirror.ended(run_of("a"), folder.read_trial("a"))
    mirror.show_results(folder, build_results(folder, ["a"]))
    assert f"`lexray wandb sync {folder.store.url}` sends it" in caplog.text
    steps = list(kept(server, mirror.runs).steps)
    assert steps == STEPS[: len(steps)]
    turn(server, "well")
    leave_wandb()
    sync(folder)
    assert kept(server, mirror.runs).rows == RECORDS


def turn(server: WandbServer, mood: Any) -> None:
    if mood == "dead":
        server.die()
        return
    server.mood = mood
    if mood == "well" and server.is_dead:
        server.open()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mood", ["hanging", "limiting"])
def test_a_server_that_is_bad_from_the_start_turns_the_sweep_offline_once(
    server: WandbServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    mood: Mood,
) -> None:
    monkeypatch.setitem(wandb_runs.SETTINGS, "init_timeout", 4)
    server.mood = mood
    runs = runs_in(tmp_path)
    for trial in ("a", "b"):
        runs.start(Described(trial, trial, {}, 1))
        runs.log(trial, RECORDS)
        runs.finish(trial, None)
    assert caplog.text.count("W&B does not answer") == 1
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_limits_for_a_while_are_waited_out(server: WandbServer, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, finish_timeout_s=60)
    runs.start(Described("a", "a", {}, 1))
    server.mood = "limiting"
    runs.log("a", RECORDS)
    wait_for(lambda: server.asked["429"], "a refusal")
    server.mood = "well"
    runs.finish("a", None)
    assert kept(server, runs).rows == RECORDS


LEAVES = """
import logging, sys
from types import SimpleNamespace as Some
from lexray.tuning.views.wandb_mirror import WandbMirror
from lexray.tuning.views.wandb_ids import RunIds
from lexray.tuning.views.wandb_runs import WandbRuns

logging.basicConfig(stream=sys.stdout)
trial = Some(id="a", name="a", config=Some(to_dict=dict), footprint=Some(workers=1))
runs = WandbRuns(ids=lambda: RunIds("x"), project="p", group="g", folder=sys.argv[1], mode="online", finish_timeout_s=2)
mirror = WandbMirror(runs=runs, patience_s=1)
mirror.started(Some(trial=trial))
mirror.logged(Some(trial=trial), [{"step": 1, "rows": 128}])
print("started", flush=True)
sys.stdin.readline()
mirror.ended(Some(trial=trial), None)
mirror.finish("URL")
print("leaves", flush=True)
"""


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_process_ends_though_its_server_died(server: WandbServer, tmp_path: Path) -> None:
    """W&B's own default is to wait for ever."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment, text=True, **pipes)
    try:
        wait_for(lambda: server.asked["file_stream"], "the run")
        server.die()
        told, _ = process.communicate("go\n", timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "`lexray wandb sync URL` sends it" in told
    assert "leaves" in told
