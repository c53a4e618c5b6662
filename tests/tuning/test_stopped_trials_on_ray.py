"""Trials that end early on a real Ray: everything they had is free again, and the sweep goes on where it is told to."""

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import ray
from sweeps import diverging_at, sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.orchestrate import run_sweep
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.sweep_folder import STOPPED, TrialRecord
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FREE_WITHIN_S = 60
LRS = [0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001, 0.000003]
"""From learning well to not at all."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("stopped") / "data")


def plan(folder: Path, data: str, **changes) -> SweepPlan:
    content = sweep_content(data, str(folder / "out"), wandb={"mode": "disabled"}, **changes)
    file = write_sweep(folder / "sweep.yaml", content)
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


def taken() -> tuple[float, int]:
    """CPUs that are not free, and placement groups that were not removed."""
    cpus = ray.cluster_resources()["CPU"] - ray.available_resources().get("CPU", 0.0)
    return cpus, sum(group["state"] != "REMOVED" for group in ray.util.placement_group_table().values())


def wait_until_nothing_is_taken() -> None:
    """So long is what the sweep promises, not what this machine takes."""
    deadline = time.monotonic() + FREE_WITHIN_S
    while time.monotonic() < deadline and taken() != (0.0, 0):
        time.sleep(0.5)
    assert taken() == (0.0, 0)


def one_after_another() -> dict:
    """Resources of trials of one worker that takes all CPUs."""
    return {"workers": 1, "cpus_per_worker": ray.cluster_resources()["CPU"]}


@pytest.mark.timeout(600)
def test_eight_trials_with_room_for_two_all_end_half_of_them_early_and_everything_is_free_again(
    data, ray_session, tmp_path
):
    wait_until_nothing_is_taken()
    half = ray.cluster_resources()["CPU"] / 2
    made = plan(
        tmp_path,
        data,
        axes={"architecture": ["topk"], "width": [64], "target_l0": [4], "lr": LRS},
        rules=[{"when": {"lr": LRS[-1]}, "set": {"workers": 2, "cpus_per_worker": half / 2}}],
        resources={"workers": 1, "cpus_per_worker": half},
        every={"log": 10, "evaluate": 5, "checkpoint": 20},
        stop={"rule": "both", "eta": 2, "first_share": 0.25},
    )
    table = run_sweep(made, []).set_index("trial")
    wait_until_nothing_is_taken()
    assert set(table["status"]) <= {"done", STOPPED}
    assert (table["status"] == STOPPED).sum() >= len(LRS) // 2
    assert not table.loc[table["status"] == STOPPED, "on_frontier"].any()
    assert table["on_frontier"].sum() >= 1
    assert table.loc[made.trials[-1].id, "status"] == STOPPED  # on both of its workers
    for trial in made.trials:
        store = made.folder.trial_store(trial.id)
        assert store.exists("dictionary/dictionary.safetensors")
        assert not store.exists("checkpoints")
    assert plan_sweep(made.sweep, made.text).unfinished == []


def test_one_that_fails_among_stopped_ones_fails_alone(data, ray_session, tmp_path):
    good, absurd, slow = 0.01, 0.5, 0.00001
    made = plan(
        tmp_path,
        data,
        axes={"architecture": ["topk"], "width": [64], "target_l0": [4], "lr": [good, absurd, slow]},
        training={"rows": 128 * 60, "clip_norm": 0.0},
        every={"log": 10, "evaluate": 5, "checkpoint": 20},
        stop={"rule": "asha", "eta": 2, "first_share": 0.25},
        resources=one_after_another(),
    )
    table = run_sweep(made, [], work=diverging_at(absurd)).set_index("trial")
    of_lr = {trial.config.optimizer.lr: trial.id for trial in made.trials}
    assert [table.loc[of_lr[lr], "status"] for lr in (good, absurd, slow)] == ["done", "failed", STOPPED]
    assert "is not finite" in table.loc[of_lr[absurd], "reason"]
    assert [t.id for t in plan_sweep(made.sweep, made.text).unfinished] == [of_lr[absurd]]


class SpendAll:
    """Follows a sweep; as soon as a trial has trained, the hours of the sweep are spent."""

    def __init__(self, made: SweepPlan) -> None:
        self.budget = made.budget

    def started(self, run: TrialRun) -> None:
        pass

    def logged(self, run: TrialRun, records: list) -> None:
        self.budget.cap = self.budget.cap._replace(cpu_s=0.0)

    def ended(self, run: TrialRun, record: TrialRecord | None) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.timeout(600)
def test_a_sweep_whose_hours_are_spent_saves_its_state_and_goes_on_with_more(data, ray_session, tmp_path):
    steps = 15_000
    long = {
        "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4], "seed": [0, 1]},
        "training": {"rows": 128 * steps, "lr": 0.003},
        "rules": [{"when": {"seed": 1}, "set": {"rows": 128 * 40}}],
        "every": {"log": 20, "evaluate": steps, "checkpoint": steps},
        "resources": one_after_another(),
    }
    made = plan(tmp_path, data, cpu_hours=10, **long)
    table = run_sweep(made, [SpendAll(made)])
    wait_until_nothing_is_taken()
    assert sorted(table["status"]) == ["pending", "stopped: cpu_hours"]
    paused = table.set_index("status").loc["stopped: cpu_hours", "trial"]
    step = made.folder.read_metrics(paused)[-1]["step"]
    assert 0 < step < steps
    assert made.folder.trial_store(paused).list_folders("checkpoints")
    again = plan(tmp_path, data, cpu_hours=20, **long)
    assert {trial.id for trial in again.unfinished} == {trial.id for trial in made.trials}
    assert again.budget.before.cpu_s > 0
    table = run_sweep(again, [])
    assert set(table["status"]) == {"done"}
    assert [record["step"] for record in made.folder.read_metrics(paused)] == list(range(20, steps + 1, 20))


@pytest.mark.timeout(600)
def test_at_its_deadline_a_sweep_saves_its_state_and_a_later_one_goes_on(data, ray_session, tmp_path):
    endless = {
        "axes": {"architecture": ["topk"], "width": [64], "target_l0": [4], "seed": [0, 1]},
        "training": {"rows": 128 * 10**6, "lr": 0.003},
        "every": {"log": 20, "evaluate": 10**6, "checkpoint": 10**6},
        "resources": one_after_another(),
    }
    steps: list[int] = []
    for attempt in range(2):
        deadline_s = time.time() + 40
        at = datetime.fromtimestamp(deadline_s, UTC).isoformat()
        made = plan(tmp_path, data, deadline=at, **endless)
        table = run_sweep(made, []).set_index("status")
        late_s = time.time() - deadline_s
        wait_until_nothing_is_taken()
        assert set(table.index) == {"stopped: deadline", "pending"}
        assert 0 <= late_s < FREE_WITHIN_S
        paused = table.loc["stopped: deadline", "trial"]
        steps.append(made.folder.read_metrics(paused)[-1]["step"])
        assert made.folder.trial_store(paused).list_folders("checkpoints"), attempt
    assert 0 < steps[0] < steps[1]
    logged = [record["step"] for record in made.folder.read_metrics(paused)]
    assert logged == sorted(set(logged))
    assert [step for step in logged if step % 20 == 0] == list(range(20, steps[1] + 1, 20))
