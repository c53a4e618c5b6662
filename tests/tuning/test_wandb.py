"""What W&B is told of a sweep, and that it can neither stop nor slow one."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner
from wandb_offline import read_offline

from lexray.cluster.cli import app
from lexray.storage.store import Store
from lexray.training.loop.metrics_log import MetricsLog
from lexray.tuning.results.report import build_results
from lexray.tuning.sweep_folder import DONE, FAILED, SweepFolder, TrialRecord
from lexray.tuning.views.wandb_ids import RunIds
from lexray.tuning.views.wandb_mirror import WandbMirror
from lexray.tuning.views.wandb_runs import Described, WandbRuns

RESULT = {"l0": 4.0, "fvu": 0.25, "explained_variance": 0.7, "dead_fraction": 0.0}


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    """A finished sweep of two trials, one of which failed."""
    made = SweepFolder(Store.at(str(tmp_path / "sweep")))
    made.store.write("sweep.yaml", b"name: small\nwandb: {project: mine}\n")
    for trial, status, result in (("a", DONE, RESULT), ("b", FAILED, {})):
        config = {"dictionary": {"architecture": "topk", "width": 64, "target_l0": 4}, "data": {"inputs": ["site"]}}
        made.write_trial(TrialRecord(trial=trial, name=f"topk-{trial}", config=config, status=status, result=result))
        log = MetricsLog(store=made.trial_store(trial))
        for step in range(10, 60, 10):
            log.add({"step": step, "rows": 128 * step, "train/loss": 1 / step})
        log.flush()
    build_results(made, ["a", "b"])
    return made


def offline_runs(place: Path) -> dict[str, tuple[dict, list[dict]]]:
    """The runs below `place` by id; W&B may write the last bytes of a finished run a moment later."""
    for _ in range(300):
        found = [read_offline(run) for run in (place / "wandb").glob("offline-run-*")]
        if all("id" in run for run, _ in found):
            break
        time.sleep(0.1)
    return {run["id"]: (run, history) for run, history in found}


def test_a_sweep_is_sent_from_its_folder_alone(folder: SweepFolder, tmp_path: Path) -> None:
    url = folder.store.local_path
    done = CliRunner().invoke(app, ["wandb", "sync", str(url), "--offline", str(tmp_path / "sent"), "--json"])
    assert done.exit_code == 0, done.output
    assert "WARNING" not in done.output
    assert json.loads(done.stdout)["records"] == {"topk-a": 5, "topk-b": 5}
    runs = offline_runs(tmp_path / "sent")
    for trial in ("a", "b"):
        about, history = runs.pop(RunIds.of_folder(folder.store).of_trial(trial))
        assert (about["group"], about["project"]) == ("small", "mine")
        logged = [{k: v for k, v in row.items() if not k.startswith("_")} for row in history]
        assert logged == folder.read_metrics(trial)
    ((_, (shown,)),) = runs.values()
    assert (shown["frontier._type"], shown["frontier.nrows"]) == ("table-file", 2)
    assert shown["frontier_picture.format"] == "png"


def test_without_a_key_nothing_is_sent_and_one_line_says_why(folder: SweepFolder, monkeypatch: Any) -> None:
    monkeypatch.setattr("lexray.tuning.views.wandb_runs.has_key", lambda: False)
    refused = CliRunner().invoke(app, ["wandb", "sync", str(folder.store.local_path)])
    assert "no API key here; run `wandb login`" in str(refused.exception)


def test_a_folder_without_a_sweep_is_refused(tmp_path: Path) -> None:
    refused = CliRunner().invoke(app, ["wandb", "sync", str(tmp_path), "--offline", str(tmp_path)])
    assert "no sweep there" in str(refused.exception)


@dataclass(kw_only=True)
class Hanging(WandbRuns):
    """A server that never answers, for those who cannot wait for a real time-out."""

    released: threading.Event = field(default_factory=threading.Event)

    def start(self, about: Described) -> None:
        self.released.wait()

    def show_sweep(self, url: str, table: Any, picture: bytes) -> None:
        pass


def run_of(trial: str) -> Any:
    config = SimpleNamespace(to_dict=dict)
    return SimpleNamespace(
        trial=SimpleNamespace(id=trial, name=trial, config=config, footprint=SimpleNamespace(workers=1))
    )


def test_nobody_waits_for_a_server_that_hangs_but_the_end_and_not_for_long(
    folder: SweepFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = Hanging(ids=lambda: RunIds("x"), project="p", group="g", folder=str(tmp_path), mode="online")
    mirror = WandbMirror(runs=runs, patience_s=0.2)
    began = time.monotonic()
    mirror.started(run_of("a"))
    for step in range(10):
        mirror.logged(run_of("a"), [{"step": step}])
    mirror.ended(run_of("a"), None)
    mirror.close()
    mirror.show_results(folder, build_results(folder, ["a", "b"]))
    mirror.finish(folder.store.url)  # again, as when a sweep ends: no second wait
    assert time.monotonic() - began < 60
    assert [r.message for r in caplog.records if "W&B has not taken everything" in r.message] == [
        f"W&B has not taken everything in 0 s: `lexray wandb sync {folder.store.url}` sends it"
    ]
    runs.released.set()
    for thread in threading.enumerate():
        if thread.name == "W&B":
            thread.join()


def test_what_fails_in_the_view_is_a_warning(folder: SweepFolder, tmp_path: Path, caplog: Any) -> None:
    mirror = WandbMirror(
        runs=WandbRuns(ids=lambda: RunIds("x"), project="p", group="g", folder=str(tmp_path), mode="offline")
    )
    mirror.started(run_of("a"))
    mirror.logged(run_of("a"), [{"rows": 128}])  # no step
    mirror.finish(folder.store.url)
    assert "W&B: KeyError: 'step' (`lexray wandb sync` sends what it lacks)" in caplog.text


def test_records_of_a_trial_that_was_not_started_are_no_further_failure(
    folder: SweepFolder, tmp_path: Path, caplog: Any
) -> None:
    mirror = WandbMirror(
        runs=WandbRuns(ids=lambda: RunIds("x"), project="p", group="g", folder=str(tmp_path), mode="offline")
    )
    mirror.logged(run_of("a"), [{"step": 1}])
    mirror.ended(run_of("a"), None)
    mirror.finish(folder.store.url)
    assert "W&B" not in caplog.text


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_server_that_refuses_turns_the_sweep_offline_once(
    folder: SweepFolder, tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setitem(__import__("lexray.tuning.views.wandb_runs", fromlist=["SETTINGS"]).SETTINGS, "init_timeout", 5)
    runs = WandbRuns(ids=lambda: RunIds("x"), project="p", group="g", folder=str(tmp_path / "view"), mode="online")
    for trial in ("a", "b"):
        runs.start(Described(trial, trial, {}, 1))
        runs.log(trial, folder.read_metrics(trial))
        runs.finish(trial, folder.read_trial(trial))
    assert caplog.text.count("W&B does not answer") == 1
    assert set(offline_runs(tmp_path / "view")) == {"a", "b"}
