"""Verdicts from a sweep's folder: a whole sweep trained in one process, one trial after another, without Ray."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from sweeps import sweep_content, write_dataset, write_sweep

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.training.checkpoint.saved import load_dictionary
from lexray.training.loop.build import ensure_process_group
from lexray.training.loop.result import TrainingResult
from lexray.training.loop.trainer import Trainer
from lexray.tuning.endings.early_stopper import RUNGS, candidate, early_stoppers, read_rungs, stopped_by
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.records import ended_record, new_record
from lexray.tuning.results.frontier import frontier_table
from lexray.tuning.sweep_folder import STOPPED, TrialRecord
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep

LRS = [0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003, 0.00001, 0.000003]
"""From learning well to not at all."""


def plan(folder: Path, data: str, **changes) -> SweepPlan:
    content = sweep_content(
        data,
        str(folder / "out"),
        axes={"architecture": ["topk"], "width": [64], "target_l0": [4], "lr": LRS},
        every={"log": 10, "evaluate": 5, "checkpoint": 1000},
        stop={"rule": "asha", "eta": 2, "first_share": 0.25},
    )
    file = write_sweep(folder / "sweep.yaml", {**content, **changes})
    return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())


def train(made: SweepPlan, trial_id: str) -> TrainingResult:
    """As a trial's worker does."""
    assert made.sweep.stop is not None
    ensure_process_group()
    trial = next(t for t in made.trials if t.id == trial_id)
    stopper = early_stoppers(made.folder, made.trials, made.sweep.stop)[trial_id]
    run = TrialRun(trial=trial, folder=made.folder, early_stopper=stopper)
    result = Trainer(config=trial.config, store=run.store, trial=trial_id, should_stop=stopper).run()
    stopped = stopped_by(run.store, stopper.rules) if result.ended == "stopped" else {}
    made.folder.write_trial(ended_record(new_record(trial, status="running"), result, 1.0, stopped=stopped))
    return result


def records(made: SweepPlan) -> list[TrialRecord]:
    found = [made.folder.read_trial(trial.id) for trial in made.trials]
    return [record for record in found if record is not None]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_dataset(tmp_path_factory.mktemp("verdicts") / "data")


@pytest.fixture(scope="module")
def swept(data, tmp_path_factory) -> SweepPlan:
    made = plan(tmp_path_factory.mktemp("swept"), data)
    for trial in made.trials:  # the best first
        train(made, trial.id)
    return made


def test_the_best_is_trained_to_its_end_and_most_others_end_at_a_rung(swept):
    found = records(swept)
    assert [r.status for r in found[:1]] == ["done"]
    stopped = [r for r in found if r.status == STOPPED]
    assert len(stopped) >= len(LRS) // 2
    for record in stopped:
        decision = record.stopped
        assert decision["step"] in (15, 30)
        assert decision["by_fvu"] < decision["fvu"]
        assert f"step {decision['step']}" in record.reason
        assert decision["by"] in record.reason
        metrics = swept.folder.read_metrics(record.trial)
        assert metrics[-1]["step"] == decision["step"]
        assert metrics[-1]["eval/fvu"] == decision["fvu"] == record.validation["fvu"]
        assert metrics[-1]["test/fvu"] == record.result["fvu"] != decision["fvu"]
        place = swept.folder.trial_store(record.trial).at_path("dictionary")
        assert load_dictionary(place.url).config.width == 64


def test_a_stopped_trial_is_in_the_table_but_not_on_the_frontier(swept):
    table = frontier_table(records(swept)).set_index("status")
    assert not table.loc[[STOPPED], "on_frontier"].any()
    assert table.loc[[STOPPED], "fvu"].notna().all()


def test_stopped_trials_are_finished_as_long_as_the_rules_stay(swept, data):
    folder = Path(swept.folder.store.local_path).parent
    assert plan(folder, data).unfinished == []
    stopped = {r.trial for r in records(swept) if r.status == STOPPED}
    without = plan(folder, data, stop=None)
    assert {t.id for t in without.unfinished} == stopped
    others = plan(folder, data, stop={"rule": "asha", "eta": 4, "first_share": 0.25})
    assert {t.id for t in others.unfinished} == stopped


def test_a_trial_that_is_trained_again_is_judged_as_before_whatever_came_since(swept):
    """The first one that passed met nobody at its rungs; now all the others are there."""
    before = {r.trial: r for r in records(swept)}
    for trial in (swept.trials[0], swept.trials[-1]):
        store = swept.folder.trial_store(trial.id)
        rungs = read_rungs(store)
        store.delete("checkpoints")  # from the first step on
        again = train(swept, trial.id)
        assert again.steps == before[trial.id].stopped.get("step", 60)
        assert (again.ended == "stopped") == (before[trial.id].status == STOPPED)
        assert again.reason == (before[trial.id].reason if again.ended == "stopped" else "")
        assert read_rungs(store) == rungs


def test_what_passed_under_other_rules_is_judged_anew(swept, data, tmp_path):
    made = plan(tmp_path, data)
    trial = made.trials[3]
    stopper = early_stoppers(made.folder, made.trials, made.sweep.stop)[trial.id]
    evaluations = [{"step": 5 * i, "eval/l0": 4.0, "eval/fvu": 0.5} for i in range(1, 4)]
    assert stopper(evaluations) == ""  # nobody else is there
    better = made.trials[0]
    other = early_stoppers(made.folder, made.trials, made.sweep.stop)[better.id]
    assert other([{**e, "eval/fvu": 0.1} for e in evaluations]) == ""
    assert stopper(evaluations) == ""
    strict = replace(stopper, rules=stopper.rules.model_copy(update={"z": 1.0}))
    assert better.id in strict(evaluations)


def test_an_evaluation_that_is_no_rung_is_not_judged_and_writes_nothing(data, tmp_path):
    made = plan(tmp_path, data)
    stopper = early_stoppers(made.folder, made.trials, made.sweep.stop)[made.trials[0].id]
    assert stopper.rungs == (15, 30)
    assert stopper([{"step": 20, "eval/l0": 4.0, "eval/fvu": 0.5}]) == ""
    assert not made.folder.trial_store(made.trials[0].id).exists(RUNGS)


def test_rungs_that_cannot_be_read_count_as_not_reached(data, tmp_path):
    made = plan(tmp_path, data)
    store = made.folder.trial_store(made.trials[0].id)
    for content in (b'{"measures": {"15"', b"[]", b'{"unknown": 1}'):
        store.write(RUNGS, content)
        assert asdict(read_rungs(store)) == {"measures": {}, "verdicts": {}, "rules": {}}


def test_trials_of_other_sites_rows_or_widths_are_no_rivals(data, tmp_path):
    made = plan(
        tmp_path,
        data,
        axes={"architecture": ["topk", "relu"], "width": [64, 128], "target_l0": [4, 8], "seed": [0, 1]},
        rules=[{"when": {"seed": 1, "width": 128}, "set": {"rows": 128 * 80}}],
    )
    for stopper in early_stoppers(made.folder, made.trials, made.sweep.stop).values():
        mine, theirs = json.loads(stopper.me.comparable), [json.loads(o.comparable) for o in stopper.others]
        assert stopper.me.trial not in {o.trial for o in stopper.others}
        assert all(other == mine for other in theirs)
        assert len(theirs) == (7 if mine[0] == 64 else 3)
    replicas = {j.me.configuration for j in early_stoppers(made.folder, made.trials, made.sweep.stop).values()}
    assert len(replicas) == 12  # of 16: eight configurations, of which four have other rows for seed 1


def test_only_architectures_with_points_at_several_sparsities_are_a_family(data, tmp_path):
    made = plan(
        tmp_path,
        data,
        axes={"architecture": ["topk", "relu", "hierarchical_topk"], "width": [64], "target_l0": [4]},
    )
    families = {t.config.dictionary.architecture: candidate(t).family for t in made.trials}
    assert families == {"topk": "", "relu": "", "hierarchical_topk": "HierarchicalTopK"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"every": {"log": 10, "evaluate": 20, "checkpoint": 20}}, "evaluated every 20 of 60 steps"),
        ({"stop": {"rule": "halving"}}, "stop.rule"),
        ({"stop": {"rule": "asha", "eta": 1}}, "stop.eta"),
        ({"stop": {"rule": "asha", "marign": 0.1}}, "did you mean 'margin'"),
        ({"stop": {"rule": "asha", "first_share": 0.9}}, "stop.first_share"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(data, tmp_path, changes, message):
    with pytest.raises(UserError) as refused:
        plan(tmp_path, data, **changes)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
