"""What is handed to Ray's metrics; what Ray exports of it is held in tests/infra/test_observability.py."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from namespaces import wait_until
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.reader import ReadCost
from lexray.storage.server import ServerStats
from lexray.training.loop.hooks import LogInterval
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.ray_backend import publisher
from lexray.tuning.ray_backend.metrics import StatusMetrics, TrainingMetrics
from lexray.tuning.ray_backend.publisher import DESCRIPTIONS, Publisher, Sample, server_samples
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.records import new_record
from lexray.tuning.sweep_folder import DONE, FAILED
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep


@pytest.fixture
def handed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, float, dict[str, str]]]:
    """Kind, name, value and tags of each call, which would be refused where Ray refuses it."""
    calls: list[tuple[str, str, float, dict[str, str]]] = []

    class Recorded:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self.name, self.tag_keys = name, set(tag_keys)

        def inc(self, value: float, tags: dict[str, str]) -> None:
            assert value > 0
            assert tags.keys() == self.tag_keys
            calls.append(("counter", self.name, value, tags))

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags.keys() == self.tag_keys
            calls.append(("gauge", self.name, value, tags))

    monkeypatch.setattr(publisher, "Counter", Recorded)
    monkeypatch.setattr(publisher, "Gauge", Recorded)
    return calls


@pytest.fixture
def planned(tmp_path: Path) -> SweepPlan:
    content = sweep_content(write_dataset(tmp_path / "data"), str(tmp_path / "out"))
    file = write_sweep(tmp_path / "sweep.yaml", content)
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


def a_run(plan: SweepPlan) -> TrialRun:
    return TrialRun(trial=plan.trials[0], folder=plan.folder, sweep=plan.sweep.name)


def test_a_counter_grows_by_what_was_added_and_a_gauge_is_set_every_time(handed):
    now = {"lexray_rows_total": 5.0, "lexray_fvu": 0.5}
    made = Publisher(tags={"sweep": "a"}, samples=lambda: [Sample(*item) for item in now.items()])
    made.publish()
    made.publish()
    now |= {"lexray_rows_total": 12.0, "lexray_fvu": math.nan}
    made.publish()
    assert [(kind, value) for kind, _, value, _ in handed] == [
        ("counter", 5.0), ("gauge", 0.5), ("gauge", 0.5), ("counter", 7.0),
    ]  # fmt: skip


def test_series_of_one_counter_are_counted_apart(handed):
    read = ReadCost(store_bytes=7, disk_bytes=3)
    Publisher(tags={"sweep": "a"}, samples=lambda: server_samples(ServerStats(pid=1, read=read))).publish()
    counted = {tags["source"]: value for kind, name, value, tags in handed if name == "lexray_read_bytes_total"}
    assert counted == {"store": 7, "disk": 3}


def test_a_record_without_a_value_ends_no_training(handed, planned: SweepPlan):
    made = TrainingMetrics(a_run(planned))
    made.add(LogInterval(10, 1280, 2.0, {"train/loss": 1.0}))
    assert {"lexray_rows_total", "lexray_store_retries_total"} <= {sample.name for sample in made.samples()}


def test_a_training_is_counted_from_interval_to_interval(handed, planned: SweepPlan):
    made = TrainingMetrics(a_run(planned))
    made.add(LogInterval(10, 1280, 2.0, {"data/wait": 0.25, "train/fvu": 0.9, "train/l0": 4.0}))
    made.add(LogInterval(5, 640, 1.0, {"data/wait": 0.5, "train/fvu": 0.4, "train/l0": 5.0}))
    assert {sample.name: sample.value for sample in made.samples()} == {
        "lexray_steps_total": 15,
        "lexray_rows_total": 1920,
        "lexray_step_seconds_total": 3.0,
        "lexray_data_wait_seconds_total": 1.0,
        "lexray_fvu": 0.4,
        "lexray_l0": 5.0,
        "lexray_store_retries_total": 0,
    }
    with made:
        pass
    wait_until(lambda: len(handed) == 6, "what a training that ended had counted")
    trial = planned.trials[0]
    tags = {"sweep": "small", "trial": trial.id, "trial_name": trial.name, "architecture": "topk"}
    assert all(found == tags for *_, found in handed)


def test_trials_are_counted_by_status(handed, planned: SweepPlan):
    statuses = StatusMetrics(sweep="small", num_trials=5, num_finished=2)
    run = a_run(planned)
    for record in (new_record(run.trial, status=DONE), None):
        statuses.started(run)
        statuses.ended(run, record)
    statuses.started(run)
    statuses.close()
    found = {dict(sample.tags)["status"]: sample.value for sample in statuses.samples()}
    assert found == {"pending": 0, "running": 1, "finished before": 2, DONE: 1, FAILED: 1}


def test_an_error_ends_the_view_with_one_line_and_nothing_else(caplog, planned: SweepPlan, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no agent")

    monkeypatch.setattr(publisher, "Counter", broken)
    made = TrainingMetrics(a_run(planned))
    made.add(LogInterval(10, 1280, 2.0, {"data/wait": 0.25, "train/fvu": 0.9, "train/l0": 4.0}))
    with caplog.at_level(logging.WARNING, "lexray"), made:
        pass
    wait_until(lambda: bool(caplog.messages), "the warning")
    wait_until(lambda: all(thread.name != "metrics" for thread in threading.enumerate()), "the end of the thread")
    assert caplog.messages == ["metrics are published no more: no agent"]
    made.add(LogInterval(10, 1280, 2.0, {"data/wait": 0.25, "train/fvu": 0.9, "train/l0": 4.0}))


def test_every_metric_is_published_by_somebody(handed, planned: SweepPlan):
    statuses = StatusMetrics(sweep="small", num_trials=1, num_finished=0)
    statuses.close()
    training = TrainingMetrics(a_run(planned))
    training.add(LogInterval(10, 1280, 2.0, {"data/wait": 0.25, "train/fvu": 0.9, "train/l0": 4.0}))
    samples = [*statuses.samples(), *training.samples(), *server_samples(ServerStats(pid=1))]
    assert {sample.name for sample in samples} == DESCRIPTIONS.keys()


def test_a_window_server_loads_no_torch_to_publish():
    program = "import sys, lexray.tuning.ray_backend.publisher; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
