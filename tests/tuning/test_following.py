"""Which trial starts next, and what the views of a running sweep are told; no Ray is started."""

import io
from pathlib import Path

import pytest
from ray.tune.search import Searcher
from rich.console import Console
from sweeps import fixed_allocator, sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.training.loop.metrics_log import MetricsLog
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.nodes import Node, refuse_what_never_fits
from lexray.tuning.ray_backend.trial_queue import TrialQueue
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.records import new_record
from lexray.tuning.sweep_folder import DONE, FAILED
from lexray.tuning.sweep_plan import plan_sweep
from lexray.tuning.views.follow import FollowThread
from lexray.tuning.views.progress import TerminalView


@pytest.fixture
def runs(tmp_path: Path) -> list[TrialRun]:
    """Three trials: of one worker, of two, of one."""
    content = sweep_content(
        write_dataset(tmp_path / "data"),
        str(tmp_path / "out"),
        axes={"architecture": ["topk"], "width": [32, 64, 128], "target_l0": [4]},
        rules=[{"when": {"width": 64}, "set": {"workers": 2}}],
    )
    file = write_sweep(tmp_path / "sweep.yaml", content)
    plan = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
    return [TrialRun(trial=trial, folder=plan.folder) for trial in plan.trials]


def test_a_wide_trial_waits_for_room_and_none_overtakes_it(runs):
    changes = []
    queue = TrialQueue(
        runs, fixed_allocator({"a": Node(2, 0)}), lambda run, started: changes.append((run.trial.name, started))
    )
    assert queue.suggest("a")["run"] is runs[0]
    assert queue.suggest("b") is None  # two workers do not fit beside one on two CPUs, and the third must not overtake
    queue.on_trial_complete("a")
    assert queue.suggest("b")["run"] is runs[1]
    assert queue.suggest("c") is None
    queue.on_trial_complete("b")
    assert queue.suggest("c")["run"] is runs[2]
    assert queue.suggest("d") == Searcher.FINISHED
    names = [run.trial.name for run in runs]
    assert changes == [(names[0], True), (names[0], False), (names[1], True), (names[1], False), (names[2], True)]


def test_workers_must_fit_on_nodes_not_only_on_their_sum(runs):
    trials = [run.trial for run in runs]
    refuse_what_never_fits(trials, [Node(1, 0), Node(1, 0)])
    with pytest.raises(UserError, match="topk-w64-l4 wants 2 workers of 1 CPU"):
        refuse_what_never_fits(trials, [Node(1.5, 0), Node(0.5, 0)])
    with pytest.raises(UserError, match=r"on 2 node\(s\) in 2 zones, of which a trial uses one\) has room for 1"):
        refuse_what_never_fits(trials, [Node(1, 0, zone="a"), Node(1, 0, zone="b")])


class RecordingListener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told = []

    def started(self, run):
        self.told.append("started")

    def logged(self, run, records):
        self.told.extend(record["step"] for record in records)

    def ended(self, run, record):
        self.told.append(record.status)

    def close(self):
        self.told.append("closed")


class Broken(RecordingListener):
    """Fails whatever it is told."""

    def logged(self, run, records):
        raise RuntimeError("the view is down")

    started = ended = logged


def write_steps(run: TrialRun, steps: range) -> None:
    log = MetricsLog(store=run.store, interval_s=0.0)
    for step in steps:
        log.add({"step": step, "rows": step * 128, "train/l0": 4.0, "train/fvu": 0.5, "perf/rows_per_s": 1000.0})
    log.flush()


def test_listeners_hear_each_step_once_and_a_broken_one_stops_nothing(runs):
    listener = RecordingListener()
    with FollowThread(folder=runs[0].folder, listeners=[Broken(), listener], interval_s=60) as follow:
        follow.changed(runs[0], True)
        write_steps(runs[0], range(10, 30, 10))
        follow._poll()
        write_steps(runs[0], range(10, 50, 10))
        runs[0].folder.write_trial(new_record(runs[0].trial, status=DONE))
        follow.changed(runs[0], False)
    assert listener.told == ["started", 10, 20, 30, 40, DONE, "closed"]


def test_a_last_step_to_which_values_are_added_is_told_again(runs):
    listener = RecordingListener()
    with FollowThread(folder=runs[0].folder, listeners=[listener], interval_s=60) as follow:
        follow.changed(runs[0], True)
        write_steps(runs[0], range(10, 30, 10))
        follow._poll()
        follow._poll()
        log = MetricsLog(store=runs[0].store, interval_s=0.0)
        log.resume(20)
        log.add({"step": 20, "rows": 2560, "test/fvu": 0.4})
        log.flush()
        runs[0].folder.write_trial(new_record(runs[0].trial, status=DONE))
        follow.changed(runs[0], False)
    assert listener.told == ["started", 10, 20, 20, DONE, "closed"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_terminal_shows_trial_step_speed_l0_and_fvu(runs, terminal):
    output = io.StringIO()
    view = TerminalView(console=Console(file=output, force_terminal=terminal, width=100), num_trials=3)
    view.started(runs[0])
    view.logged(runs[0], [{"step": 30, "train/l0": 4.25, "train/fvu": 0.1234, "perf/rows_per_s": 5678.0}])
    if terminal:
        view._live.refresh()
    view.ended(runs[0], new_record(runs[0].trial, status=FAILED))
    view.close()
    for shown in (runs[0].trial.name, "30/60", "5,678", "4.2", "0.1234", "failed"):
        assert shown in output.getvalue()
