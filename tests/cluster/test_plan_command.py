"""`lexray plan`: what a sweep will take, told before anything starts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.cluster import cli
from lexray.cluster.commands import plan as plan_command
from lexray.storage.config_file import read_config_file
from lexray.training.checkpoint.saved import CONFIG
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.estimate import SWEEP_START_S
from lexray.tuning.planning.plan import Machines
from lexray.tuning.records import new_record
from lexray.tuning.sweep_folder import DONE
from lexray.tuning.sweep_plan import plan_sweep


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture
def sweep_file(data, tmp_path):
    def write(**changes: Any) -> str:
        return write_sweep(tmp_path / "sweep.yaml", sweep_content(data, str(tmp_path / "out"), **changes))

    return write


@pytest.fixture
def planned(lexray, sweep_file):
    """The document of `lexray plan --json`."""

    def run(*options: str, **changes: Any) -> dict[str, Any]:
        code, out, err = lexray("plan", sweep_file(**changes), "--json", *options)
        assert code == 0, err
        return json.loads(out)

    return run


def finish_first_trial(file: str) -> None:
    """As if a sweep had been run so far."""
    plan = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
    trial = plan.trials[0]
    timing = {"total_s": 50.0, "train_s": 20.0, "rows_per_s": 128 * 60 / 20}
    plan.folder.write_trial(replace(new_record(trial, status=DONE), timing=timing))
    plan.folder.trial_store(trial.id).write(f"dictionary/{CONFIG}", b"{}")


def test_a_plan_lists_trials_memory_bytes_and_steps_and_leaves_nothing_behind(lexray, sweep_file, tmp_path):
    code, out, err = lexray("plan", sweep_file(prices={"cpu_hour": 1}))
    assert (code, err) == (0, "")
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "2 to do, 0 reused" in lines["trials"]
    assert "120" in lines["steps"]
    assert "unknown: run with --measure" in lines["time"]
    assert "unknown: run with --measure" in lines["cost"]
    assert any(line.startswith(" topk-w64-l4") and "1 x 1 Z0" in line for line in out.splitlines())
    assert "process 700 MiB" in lines["memory"]
    assert lines["held out"].endswith(
        "10.0% of the rows: 300 for validation, 300 of 2 documents for test, so an FVU has a standard error of about "
        "14.1%"  # 0.2 / sqrt(2)
    )
    assert not (tmp_path / "out").exists()


def test_the_plan_of_a_search_that_chooses_later_is_an_upper_bound_and_says_so(lexray, sweep_file, planned):
    axes = {"architecture": ["topk", "relu"], "width": [32, 64], "target_l0": [4], "lr": {"from": 0.001, "to": 0.01}}
    search = {"kind": "optuna", "trials": 5}
    code, out, err = lexray("plan", sweep_file(axes=axes, search=search, cpu_hours=1e-9))
    assert (code, err) == (0, "")
    assert "5 trials are chosen while the sweep runs: the numbers are upper bounds" in out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "5 to do, 0 reused" in lines["trials"]
    assert "300" in lines["steps"]
    document = planned(axes=axes, search=search, include=[{"width": 64, "architecture": "topk", "lr": 0.001}])
    assert document["chosen_later"] == 5
    assert [(trial["name"], trial["is_bound"]) for trial in document["trials"]] == [
        ("topk-w64-l4-lr0.001", False),
        ("topk-w64-l4-lr0.001", True),
        ("relu-w64-l4-lr0.001", True),
    ]
    assert document["steps"] == 6 * 60
    code, _, err = lexray(
        "plan", sweep_file(axes=axes, search=search, resources={"workers": 4096, "cpus_per_worker": 1})
    )
    assert (code, err.count("\n")) == (2, 1)


def test_measured_steps_tell_time_and_money_and_are_kept_for_the_sweep(planned, monkeypatch, tmp_path):
    monkeypatch.setattr(plan_command, "MEASURE_S", 0.05)
    document = planned("--measure", prices={"cpu_hour": 2.0})
    assert all(trial["seconds"] > 0 for trial in document["trials"])
    assert document["cost"] == pytest.approx(2 * document["cpu_hours"])
    assert {speed["source"] for speed in document["speeds"].values()} == {"measured"}
    assert json.loads((tmp_path / "out" / "plan.json").read_text()) == document
    again = planned(prices={"cpu_hour": 2.0})
    assert again["seconds"] == document["seconds"], "known without measuring again"


def test_finished_trials_are_reused_and_tell_how_long_others_take(planned, sweep_file):
    axes = {"architecture": ["topk"], "width": [64], "target_l0": [4], "seed": [0, 1]}
    finish_first_trial(sweep_file(axes=axes))
    document = planned(axes=axes)
    assert [trial["reused"] for trial in document["trials"]] == [True, False]
    assert document["steps"] == 60
    trial_s = 20 + 30  # for its rows, and for all else
    assert document["seconds"] == pytest.approx(SWEEP_START_S + trial_s)


def test_a_mesh_that_is_left_open_is_chosen(planned):
    document = planned(resources={"mesh": "auto"})
    assert [(trial["data"], trial["feature"]) for trial in document["trials"]] == [(1, 1), (1, 1)]


@pytest.mark.slow
@pytest.mark.ray
def test_the_nodes_of_a_cluster_are_planned_for(ray_session, sweep_file):
    command = [sys.executable, "-m", "lexray", "plan", sweep_file(), "--address", ray_session, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [node["cpus"] for node in document["nodes"]] == [4]
    assert document["at_once"] == 2


def test_a_sweep_that_is_done_has_nothing_to_do(lexray, sweep_file):
    file = sweep_file(axes={"architecture": ["topk"], "width": [64], "target_l0": [4]})
    finish_first_trial(file)
    code, out, _ = lexray("plan", file)
    assert code == 0
    assert "0 to do, 1 reused" in out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"resources": {"workers": 2, "cpus_per_worker": 4000}}, "wants 2 workers of 4000 CPU, but the cluster"),
        ({"axes": {"architecture": "topk", "width": 2**31 - 1, "target_l0": 4}}, "no mesh on these nodes would fit"),
        ({"axes": {"architecture": "topk", "width": [], "target_l0": 4}}, "has no values"),
        ({"exclude": [{"width": 64}]}, "exclude: removes all 2 points"),
        ({"pricse": {}}, "pricse: unknown key; did you mean 'prices'?"),
    ],
)
def test_what_a_sweep_would_refuse_is_refused_in_one_line(lexray, sweep_file, tmp_path, changes, line):
    code, out, err = lexray("plan", sweep_file(**changes))
    assert (code, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("field", ["output", "data"])
def test_a_store_that_cannot_be_reached_is_named_before_anything_starts(lexray, sweep_file, monkeypatch, field):
    monkeypatch.setattr(cli, "FIRST_ANSWER_S", 0.2)
    changes: dict[str, Any] = {"storage": {"endpoint_url": "http://127.0.0.1:1"}}
    if field == "output":
        changes["output"] = "s3://nowhere/out"
    else:
        changes["data"] = {"url": "s3://nowhere/data", "site": "site"}
    file = sweep_file()
    Path(file).write_text(yaml.safe_dump({**yaml.safe_load(Path(file).read_text()), **changes}))
    code, out, err = lexray("plan", file)
    assert (code, out) == (2, "")
    assert f"{'output' if field == 'output' else 'dataset'}: cannot read s3://nowhere/" in err
    assert err.count("\n") == 1


def test_a_plan_over_the_cap_is_refused(lexray, sweep_file):
    axes = {"architecture": ["topk"], "width": [64], "target_l0": [4], "seed": [0, 1]}
    finish_first_trial(sweep_file(axes=axes))
    code, _, err = lexray("plan", sweep_file(axes=axes, cpu_hours=0.01))
    assert code == 2
    assert "cpu_hours: 0.01 at most, but 1 trial(s) are estimated to take 0.0139" in err


def test_a_cluster_that_does_not_answer_is_named(lexray, sweep_file):
    code, _, err = lexray("plan", sweep_file(), "--address", "127.0.0.1:1")
    assert code == 2
    assert "--address 127.0.0.1:1: nobody answers there" in err


# GPUs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_a_gpu(monkeypatch):
    """A machine with one GPU, as far as plans go."""
    machines = Machines(nodes=[Node(4, 1, 64 * 2**30)], object_store_bytes=[8 * 2**30])
    monkeypatch.setattr(plan_command, "this_machine", lambda: machines)


@pytest.mark.usefixtures("with_a_gpu")
def test_a_plan_shows_what_gpus_auto_became(lexray, sweep_file):
    file = sweep_file(rules=[{"when": {"architecture": "relu"}, "set": {"workers": 2}}])
    code, out, err = lexray("plan", file)
    assert code == 0, err
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert lines["devices"].endswith("CPUs (1 trial(s)), 1 GPU a worker (1 trial(s))")
    assert "gpus_per_worker: auto gives 1 of 2 trial(s) 1 GPU a worker" in " ".join(err.split())
    document = json.loads(lexray("plan", file, "--json")[1])
    assert {trial["name"]: trial["gpus"] for trial in document["trials"]} == {"topk-w64-l4": 1, "relu-w64-l4": 0}


@pytest.mark.usefixtures("with_a_gpu")
def test_a_mesh_that_would_share_a_gpu_is_refused_by_plan_and_sweep(lexray, sweep_file, tmp_path):
    file = sweep_file(resources={"workers": 2, "gpus_per_worker": 0.5})
    for command in ("plan", "sweep"):
        code, out, err = lexray(command, file)
        assert (code, out) == (2, "")
        assert "resources.gpus_per_worker: 0.5, but mesh: {data: 2, feature: 1} has 2 workers" in " ".join(err.split())
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("with_a_gpu")
def test_trials_on_gpus_are_not_timed_on_a_machine_without_one(lexray, sweep_file, monkeypatch):
    monkeypatch.setattr("lexray.training.mesh.device.usable_gpus", lambda: 0)
    code, out, err = lexray("plan", sweep_file(), "--measure", "--json")
    assert code == 0, err
    assert "not timed: 2 kind(s) of trial train on GPUs, and this machine has none" in " ".join(err.split())
    assert json.loads(out)["speeds"] == {}
