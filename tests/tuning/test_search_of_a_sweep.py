"""A search by Optuna over a sweep's folder: what is asked, told, kept and left out. No trial is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.tune.search import Searcher
from sweeps import fixed_allocator, sweep_content, write_dataset, write_sweep
from synthetic import write_rows

from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError
from lexray.training.checkpoint.saved import CONFIG
from lexray.tuning.endings.early_stopper import candidates_in, early_stopper_of
from lexray.tuning.file.sweep_file import SweepFile
from lexray.tuning.placement.allocator import View
from lexray.tuning.placement.nodes import Node
from lexray.tuning.ray_backend.placer import Placer
from lexray.tuning.ray_backend.trial_queue import TrialQueue
from lexray.tuning.ray_backend.trial_run import TrialRun
from lexray.tuning.records import new_record
from lexray.tuning.search.asking import Search, values_of
from lexray.tuning.sweep_folder import DONE, FAILED, PENDING, RUNNING, STOPPED, TARGET_MISSED, TrialRecord
from lexray.tuning.sweep_plan import SweepPlan, plan_sweep
from lexray.tuning.trials import Trial

AXES: dict[str, Any] = {
    "architecture": ["topk"],
    "width": {"from": 32, "to": 128, "whole": True, "scale": "log"},
    "target_l0": [2, 4, 8],
    "lr": {"from": 1e-4, "to": 1e-2, "scale": "log"},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_dataset(tmp_path_factory.mktemp("searched") / "data")


Plans = Callable[..., SweepPlan]


@pytest.fixture
def plan(data: str, tmp_path: Path) -> Plans:
    """Plans a search of so many trials; the folder stays the same unless it is named."""

    def make(trials: int, *, axes: dict[str, Any] = AXES, out: str = "out", **changes: Any) -> SweepPlan:
        search = {"kind": "optuna", "trials": trials, **changes.pop("search", {})}
        content = {**sweep_content(data, str(tmp_path / out), axes=axes, search=search), **changes}
        file = write_sweep(tmp_path / "sweep.yaml", content)
        return plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())

    return make


def search_in(made: SweepPlan) -> Search:
    assert made.search is not None
    return made.search


def end(made: SweepPlan, trial: Trial, status: str = DONE) -> None:
    """Write what a trial leaves, with a result that its configuration decides, and tell the search."""
    config = trial.config
    lr = config.optimizer.lr if isinstance(config.optimizer.lr, float) else 1e-3
    fvu = 1 / config.dictionary.target_l0 + abs(lr - 1e-3) * 50 + 4 / config.dictionary.width
    result = {"l0": float(config.dictionary.target_l0), "fvu": fvu}
    made.folder.write_trial(replace(new_record(trial, status=status), result=result if status != FAILED else {}))
    made.folder.trial_store(trial.id).write(f"dictionary/{CONFIG}", b"{}")
    search_in(made).told(trial)


def run(made: SweepPlan, most: int = 99) -> list[Trial]:
    """One trial after another, as with room for one; the trials that were trained."""
    trained = []
    for trial in made.unfinished[:most]:
        end(made, trial)
        trained.append(trial)
    while len(trained) < most and (trial := search_in(made).ask()) is not None:
        end(made, trial)
        trained.append(trial)
    return trained


def points(trials: list[Trial]) -> list[Any]:
    return [(trial.number, trial.point) for trial in trials]


# Going on ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_search_that_is_interrupted_asks_what_an_undisturbed_one_asks(plan, sampler):
    undisturbed = run(plan(14, out="undisturbed", search={"sampler": sampler}))
    assert len(undisturbed) == 14
    asked = []
    for most in (1, 10, 1, 1, 1):
        asked += run(plan(14, search={"sampler": sampler}), most=most)
    assert points(asked) == points(undisturbed)
    after = plan(14, search={"sampler": sampler})
    assert (after.unfinished, after.to_ask, after.expected, search_in(after).ask()) == ([], 0, [], None)
    assert points(after.trials) == points(undisturbed)


def test_trials_that_were_interrupted_go_on_first_and_nothing_else_is_asked_in_their_place(plan):
    first = plan(6)
    done, running, pending = (search_in(first).ask() for _ in range(3))
    end(first, done)
    first.folder.write_trial(new_record(running, status=RUNNING))
    again = plan(6)
    assert points(again.trials) == points([done, running, pending])
    assert [t.id for t in again.unfinished] == [running.id, pending.id]
    assert (again.to_ask, again.num_trials) == (3, 6)
    assert [t.id for t in run(again)][:2] == [running.id, pending.id]
    assert len({trial.id for trial in plan(6).trials}) == 6


def test_more_trials_continue_a_search_and_fewer_keep_its_first_ones(plan):
    three = run(plan(3))
    more = plan(5)
    assert points(more.trials) == points(three)
    assert [trial.number for trial in run(more)] == [3, 4]
    assert points(plan(2).trials) == points(three[:2])


def test_records_that_the_axes_no_longer_have_are_left_out_and_those_that_they_have_stay(plan):
    axes = {"architecture": ["topk"], "width": [32, 64], "target_l0": [2, 4, 8]}
    run(plan(6, axes=axes))
    narrow = plan(4, axes={**axes, "width": [64, 128]})
    assert {trial.point["width"] for trial in narrow.trials} == {64}
    assert {trial.point["width"] for trial in run(narrow)} == {128}
    assert plan(6, axes={**axes, "seed": [0, 1]}).trials == []
    other_rows = plan(6, axes=axes, training={"rows": 128 * 30, "lr": 0.003})
    assert other_rows.trials == [], "they are other dictionaries"


def test_a_grid_that_was_trained_is_known_to_the_search_that_follows(plan, data, tmp_path):
    axes = {"architecture": ["topk"], "width": [64], "target_l0": [2, 4], "lr": [0.001]}
    file = write_sweep(tmp_path / "grid.yaml", sweep_content(data, str(tmp_path / "out"), axes=axes))
    grid = plan_sweep(read_config_file(file, SweepFile), Path(file).read_text())
    for trial in grid.trials:
        grid.folder.write_trial(replace(new_record(trial, status=DONE), result={"l0": 2.0, "fvu": 0.5}))
        grid.folder.trial_store(trial.id).write(f"dictionary/{CONFIG}", b"{}")
    made = plan(5, axes={**axes, "target_l0": [2, 4, 8], "lr": [0.001, 0.01]})
    assert {trial.id for trial in made.trials} == {trial.id for trial in grid.trials}
    assert len(run(made)) == 3


def test_a_dictionary_that_another_point_made_is_told_and_not_trained_again(plan):
    axes = {"architecture": ["topk"], "width": [32, 64], "target_l0": [2, 4]}
    trained = run(plan(4, axes={**axes, "lr": [0.003]}))
    made = plan(4, axes=axes)  # the same learning rate, from `training`
    assert made.trials == []
    assert search_in(made).ask() is None
    assert {trial.id for trial in plan(4, axes=axes).trials} == {trial.id for trial in trained}


# Which points -----------------------------------------------------------------------------------------------------


def test_every_dictionary_of_the_axes_is_trained_once(plan):
    axes = {"architecture": ["topk", "relu"], "width": [64], "target_l0": [2, 4], "k_aux": [2, 3]}
    trained = run(plan(6, axes=axes))
    assert len({trial.id for trial in trained}) == 6
    assert sum(trial.config.dictionary.architecture == "topk" for trial in trained) == 4
    with pytest.raises(UserError, match=r"search\.trials: 7, but only 6 different dictionaries"):
        plan(7, axes=axes, out="more")


def test_excluded_points_are_never_asked_and_those_that_cannot_be_are_passed_over(plan):
    axes = {**AXES, "width": {"from": 32, "to": 64, "whole": True}}
    rules = [{"when": {"target_l0": [2, 4]}, "set": {"mesh": {"feature": 2}}}]
    trained = run(plan(12, axes=axes, exclude=[{"target_l0": 8}], rules=rules))
    assert len(trained) == 12
    assert {trial.point["target_l0"] for trial in trained} <= {2, 4}
    assert all(trial.point["width"] % 2 == 0 for trial in trained), "two workers halve the latents"


def test_included_points_come_first_and_besides(plan):
    include = [
        {"architecture": "topk", "width": 64, "target_l0": 4, "lr": 0.001},
        {"width": 256, "lr": 0.001, "seed": 1},
    ]
    made = plan(2, include=include)
    assert [trial.point["width"] for trial in made.trials] == [64, 256, 256, 256]
    assert made.num_trials == 6
    trained = run(made)
    assert [trial.number for trial in trained] == [None] * 4 + [0, 1]
    again = plan(2, include=include)
    assert [trial.id for trial in again.trials] == [trial.id for trial in trained]


def test_sites_have_searches_of_their_own_that_get_as_many_trials(plan, tmp_path):
    vectors = {site: torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)) for site in ("a", "b", "c")}
    stored = write_rows(tmp_path / "sites", 1000, vectors=vectors, dtype="float32", chunk_rows=64)
    axes = {
        "architecture": ["topk", "crosscoder"],
        "width": [16, 32],
        "target_l0": [2, 4],
        "lr": AXES["lr"],
        "site": ["a", "b"],
        "sites": [["a", "b"], ["a", "c"]],
    }
    changes = {"data": {"url": stored.store.url, "batch_rows": 64}, "training": {"rows": 640}}
    trained = run(plan(12, axes=axes, **changes))
    found = [trial.config.data.inputs for trial in trained]
    assert {sites: found.count(sites) for sites in found} == {("a",): 3, ("b",): 3, ("a", "b"): 3, ("a", "c"): 3}
    again = plan(12, axes=axes, **changes)
    assert points(again.trials) == points(trained)


def test_what_is_told_of_a_trial_is_what_its_record_says():
    record = TrialRecord(trial="t", name="t", config={"dictionary": {"width": 64}}, result={"l0": 4.0, "fvu": 0.25})
    for status in (DONE, TARGET_MISSED, STOPPED):
        steered = replace(record, status=status, validation={"l0": 5.0, "fvu": 0.5})
        assert values_of(steered, with_width=False) == (5.0, 0.5), "never by test rows"
        assert values_of(replace(record, status=status), with_width=False) == (4.0, 0.25)
        assert values_of(replace(record, status=status), with_width=True) == (4.0, 0.25, 64.0)
    for status in (FAILED, PENDING, RUNNING):
        assert values_of(replace(record, status=status), with_width=True) is None
    assert values_of(replace(record, status=DONE, result={"l0": 4.0, "fvu": float("nan")}), with_width=False) is None


def test_a_failed_trial_counts_and_is_tried_again_by_the_next_run(plan):
    made = plan(3)
    failed = search_in(made).ask()
    end(made, failed, FAILED)
    assert len(run(made)) == 2
    assert [trial.id for trial in plan(3).unfinished] == [failed.id]


# What bounds it ---------------------------------------------------------------------------------------------------


def test_corners_of_the_axes_are_checked_before_anything_is_asked(plan):
    with pytest.raises(UserError, match=r"target_l0: 64 must be at most the width 32"):
        plan(2, axes={**AXES, "target_l0": {"from": 2, "to": 64, "whole": True}})
    with pytest.raises(UserError, match=r"every\.evaluate"):
        plan(2, stop={"rule": "asha"})
    made = plan(40)
    shapes = {(t.config.dictionary.width, t.config.dictionary.target_l0) for t in made.expected}
    assert shapes == {(32, 2), (32, 8), (128, 2), (128, 8)}
    assert len(made.expected) == 40


def test_judges_know_the_trials_that_were_asked_after_theirs_started(plan):
    stop = {"rule": "both", "first_share": 0.25, "eta": 2}
    axes = {**AXES, "width": [64]}
    made = plan(5, axes=axes, stop=stop, every={"log": 10, "evaluate": 5, "checkpoint": 20})
    first = search_in(made).ask()
    assert made.sweep.stop is not None
    stopper = early_stopper_of(made.folder, first, made.sweep.stop)
    assert candidates_in(made.folder, stopper.me) == ()
    later = [search_in(made).ask() for _ in range(3)]
    made.folder.trial_store("broken").write("trial.json", b"{")
    assert {other.trial for other in candidates_in(made.folder, stopper.me)} == {trial.id for trial in later}


class _Source:
    def __init__(self, made: SweepPlan) -> None:
        self.search, self.smallest = search_in(made), search_in(made).bounds[0].footprint
        self.folder = made.folder

    def ask(self) -> list[TrialRun]:
        trial = self.search.ask()
        return [] if trial is None else [TrialRun(trial=trial, folder=self.folder)]


def test_a_search_asks_for_its_first_trial_where_every_pool_begins_at_zero_nodes(plan):
    queue = TrialQueue([], fixed_allocator({"head": Node(0, 0)}), lambda run, started: None, source=_Source(plan(3)))
    assert queue.suggest("a") is None
    assert len(queue._allocator.waiting()) == 1, "nobody else makes an autoscaler add nodes"


def test_a_trial_whose_nodes_never_arrive_has_failed_and_the_next_one_is_tried(plan):
    made, changes = plan(3), []
    source = _Source(made)
    allocator = Placer(None, lambda: View(nodes={}), wait_at_most_s=1e-9, failures=lambda: ["pool gpu: quota 0"])
    queue = TrialQueue([], allocator, lambda run, started: changes.append((run.trial.id, started)), source=source)
    while queue.suggest("a") != Searcher.FINISHED:
        pass
    assert len(source.search.asked) == 3
    for trial in source.search.asked:
        record = made.folder.read_trial(trial.id)
        assert record.status == "failed"
        assert "pool gpu: quota 0" in record.reason
        assert [change for change in changes if change[0] == trial.id] == [(trial.id, True), (trial.id, False)]


def test_a_trial_is_not_chosen_before_there_is_room_for_one(plan):
    made = plan(3)
    source = _Source(made)
    queue = TrialQueue([], fixed_allocator({"a": Node(2, 0)}), lambda run, started: None, source=source)
    first, second = queue.suggest("a")["run"], queue.suggest("b")["run"]
    assert queue.suggest("c") is None
    assert [trial.id for trial in source.search.asked] == [first.trial.id, second.trial.id]
    end(made, first.trial)
    queue.on_trial_complete("a")
    assert queue.suggest("c")["run"].trial.number == 2
    queue.on_trial_complete("b")
    assert queue.suggest("d") == Searcher.FINISHED
