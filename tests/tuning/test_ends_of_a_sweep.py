"""A deadline and hours that are spent: counted over all attempts, refused once reached, told to whoever runs."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search import Searcher
from sweeps import fixed_allocator, sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import CorruptDataError, UserError
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.trainer import Trainer
from lexray.tuning.endings.budget import (
    BY_HAND,
    CPU_HOURS,
    DEADLINE,
    GPU_HOURS,
    NO_CAP,
    POLL_EVERY_S,
    BudgetMonitor,
    StopSignal,
    Usage,
    UsageMeter,
    clear_ending,
    reached_cap,
    read_usage,
    write_ending,
)
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.nodes import Node
from lexray.tuning.ray_backend.trial_queue import TrialQueue
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.records import ended_record, new_record
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep
from lexray.tuning.trials import Footprint


class Clock:
    """Unix time, set by hand."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def at_once(look) -> None:
    look()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("ends") / "data")


def plan(folder: Path, data: str, **changes) -> SweepPlan:
    file = write_sweep(folder / "sweep.yaml", sweep_content(data, str(folder / "out"), **changes))
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


def meter(made: SweepPlan, workers: int = 2, gpus: float = 0.5) -> UsageMeter:
    store = made.folder.trial_store(made.trials[0].id)
    footprint = Footprint(workers=workers, cpus_per_worker=3, gpus_per_worker=gpus)
    return UsageMeter(store=store, footprint=footprint, before=read_usage(store), began_s=1_000_000.0)


def test_attempts_add_up_and_the_last_note_of_one_counts(data, tmp_path):
    made = plan(tmp_path, data)
    for attempt in (1, 2):
        counting = meter(made)
        counting.note(1_000_050.0)
        counting.note(1_000_100.0)
        assert read_usage(counting.store) == Usage(cpu_s=600.0 * attempt, gpu_s=100.0 * attempt)


def test_a_sweep_whose_hours_are_spent_is_refused_with_both_numbers(data, tmp_path):
    meter(plan(tmp_path, data)).note(1_003_600.0)
    gpus = {"workers": 1, "gpus_per_worker": 1, "cpus_per_worker": 1}
    for changes, message in (
        ({"cpu_hours": 5}, "cpu_hours: 6 of 5 are spent"),
        ({"gpu_hours": 0.5, "resources": gpus}, "gpu_hours: 1 of 0.5 are spent"),
    ):
        with pytest.raises(UserError, match=message):
            plan(tmp_path, data, **changes)
    assert plan(tmp_path, data, cpu_hours=7).budget.before == Usage(cpu_s=6 * 3600.0, gpu_s=3600.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deadline": "2020-01-31T18:00:00Z"}, "deadline: 2020-01-31 18:00:00 UTC has passed"),
        ({"deadline": "2090-01-31T18:00:00"}, "has no time zone"),
        ({"deadline": "tomorrow"}, "neither hours nor a time"),
        ({"deadline": 0}, "neither hours above 0"),
        ({"gpu_hours": 3, "resources": {"gpus_per_worker": 0}}, "no trial has a GPU"),
        ({"cpu_hours": -3}, "cpu_hours"),
    ],
)
def test_an_end_that_makes_no_sense_is_refused_in_one_line(data, tmp_path, changes, message):
    with pytest.raises(UserError) as refused:
        plan(tmp_path, data, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_deadline_is_a_time_or_hours_from_now():
    content = {"data": {"url": "u", "site": "s"}, "training": {"rows": 1}, "name": "n", "output": "o"}
    content["axes"] = {"architecture": "topk", "width": 8, "target_l0": 2}
    moment = datetime(2030, 1, 31, 18, tzinfo=UTC).timestamp()
    for deadline, at_s in (("2030-01-31T19:00:00+01:00", moment), (1.5, 1000 + 5400.0), (None, None)):
        assert SweepFile.model_validate({**content, "deadline": deadline}).deadline_at_s(1000) == at_s


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 10), st.floats(0, 10))
@settings(deadline=None)
def test_a_cap_is_reached_exactly_when_as_much_is_spent(cpu_s, gpu_s, cpu_cap_s, gpu_cap_s):
    found = reached_cap(Usage(cpu_s, gpu_s), Usage(cpu_cap_s, gpu_cap_s))
    assert (found == GPU_HOURS) == (gpu_s >= gpu_cap_s)
    assert bool(found) == (gpu_s >= gpu_cap_s or cpu_s >= cpu_cap_s)
    assert reached_cap(Usage(cpu_s, gpu_s), NO_CAP) == ""


def test_running_and_ended_trials_count_and_running_ones_are_told(data, tmp_path):
    made, clock = plan(tmp_path, data), Clock()
    first, second = made.trials
    budget = BudgetMonitor(
        folder=made.folder, deadline_s=None, cap=Usage(100.0, float("inf")), before=Usage(cpu_s=10.0), clock=clock
    )
    running = meter(made)
    pause = StopSignal(folder=made.folder, meter=running, deadline_s=None, clock=clock, beside=at_once)
    budget.changed(first, True)
    clock.now += 30
    budget.changed(second, True)
    budget.changed(first, False)
    clock.now += 50
    assert budget.spent() == Usage(cpu_s=10.0 + 30 + 50)
    budget.tell()
    assert (budget.reached(), pause()) == ("", "")
    clock.now += 20
    budget.tell()
    assert (budget.reached(), pause()) == (CPU_HOURS, CPU_HOURS)
    assert read_usage(running.store) == Usage(cpu_s=480.0, gpu_s=80.0)  # noted when it was asked after 80 s
    clear_ending(made.folder.store)  # as the next run does
    clock.now += 10
    assert pause() == ""


def test_word_left_by_hand_ends_running_trials_and_starts_no_other(data, tmp_path):
    made, clock = plan(tmp_path, data), Clock()
    budget = BudgetMonitor(folder=made.folder, deadline_s=None, cap=NO_CAP, before=Usage(), clock=clock)
    pause = StopSignal(folder=made.folder, meter=meter(made), deadline_s=None, clock=clock, beside=at_once)
    runs = [TrialRun(trial=trial, folder=made.folder) for trial in made.trials]
    queue = TrialQueue(
        runs, fixed_allocator({"a": Node(8, 0)}), lambda run, started: None, lambda: bool(budget.reached())
    )
    assert queue.suggest("a")["run"] is runs[0]
    budget.look()
    assert (budget.reached(), pause()) == ("", "")
    write_ending(made.folder.store, BY_HAND)
    clock.now += POLL_EVERY_S
    budget.look()
    assert queue.suggest("b") == Searcher.FINISHED
    assert pause() == BY_HAND


def test_a_training_waits_for_no_store_that_hangs_or_fails(data, tmp_path):
    made, clock, looks = plan(tmp_path, data), Clock(), []
    pause = StopSignal(folder=made.folder, meter=meter(made), deadline_s=None, clock=clock, beside=looks.append)
    write_ending(made.folder.store, BY_HAND)
    for _ in range(3):
        clock.now += POLL_EVERY_S
        assert pause() == ""
    assert len(looks) == 1, "one look at a time"
    made.folder.store.write("ending.json", b"{")
    looks.pop()()
    clock.now += POLL_EVERY_S
    assert pause() == "", "what cannot be read ends nothing"
    write_ending(made.folder.store, BY_HAND)
    looks.pop()()
    assert pause() == BY_HAND


def test_nothing_starts_after_the_deadline_and_what_runs_is_told(data, tmp_path):
    made, clock = plan(tmp_path, data), Clock()
    budget = BudgetMonitor(folder=made.folder, deadline_s=clock.now + 5, cap=NO_CAP, before=Usage(), clock=clock)
    pause = StopSignal(folder=made.folder, meter=meter(made), deadline_s=budget.deadline_s, clock=clock, beside=at_once)
    runs = [TrialRun(trial=trial, folder=made.folder) for trial in made.trials]
    queue = TrialQueue(
        runs, fixed_allocator({"a": Node(8, 0)}), lambda run, started: None, lambda: bool(budget.reached())
    )
    assert queue.suggest("a")["run"] is runs[0]
    assert pause() == ""
    clock.now += 5
    assert queue.suggest("b") == Searcher.FINISHED
    assert pause() == DEADLINE


def test_a_paused_trial_is_unfinished_and_goes_on_from_its_step(data, tmp_path):
    ensure_process_group()
    made = plan(tmp_path, data)
    trial, asked = made.trials[0], iter(["", "", DEADLINE])
    run = TrialRun(trial=trial, folder=made.folder)
    result = Trainer(config=trial.config, store=run.store, should_pause=lambda: next(asked)).run()
    record = ended_record(new_record(trial, status="running"), result, 1.0, stopped={})
    made.folder.write_trial(record)
    assert (record.status, result.steps) == ("stopped: deadline", 30)
    assert trial.id in {t.id for t in plan(tmp_path, data).unfinished}
    again = Trainer(config=trial.config, store=run.store).run()
    assert (again.ended, again.steps) == ("done", 30)


def test_hours_that_cannot_be_read_are_named(data, tmp_path):
    made = plan(tmp_path, data)
    made.folder.trial_store(made.trials[0].id).write("spent.json", b'{"cpu_s"')
    with pytest.raises(CorruptDataError, match=r"spent.json: is not valid JSON"):
        plan(tmp_path, data, cpu_hours=1)
