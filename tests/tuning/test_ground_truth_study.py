"""`lexray bench ground-truth`: a world is stored, trained on as any dataset, and what was found is told."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from statistics import mean

import pytest
import torch
from safetensors.torch import save

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.checkpoint.initial import INITIAL_FILE
from lexray.tuning.ground_truth.arms import Arm, StudyPlan, plans
from lexray.tuning.ground_truth.running import Learned, initial_atoms, learned, store_world, train_once
from lexray.tuning.ground_truth.study import (
    Result,
    StudyOptions,
    folder_of,
    measure_one,
    measure_world,
    run_study,
    study_trial,
    trials_of,
    world_data,
)
from lexray.tuning.ground_truth.table import cell, study_document, study_table
from lexray.tuning.ground_truth.worlds import WORLDS, make_world, tree

TINY = StudyPlan(arms=plans()["tree-0"].arms[:2], batch_rows=32, steps=10)


def run_tiny(folder: Store) -> list[Result]:
    """Two arms, two seeds, ten steps."""
    options = StudyOptions(seeds=2)
    world = tree(640, seed=0)
    manifest = store_world(world, folder.at_path("tree-0/data"), {"world": "tree-0"})
    trials = list(trials_of("tree-0", world, TINY, manifest, folder, options))
    for trial in trials:
        train_once(trial.config, folder_of(trial, folder))
    return measure_world("tree-0", TINY, trials, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Store:
    return Store.at(str(tmp_path_factory.mktemp("study")))


@pytest.fixture(scope="module")
def results(folder) -> list[Result]:
    return run_tiny(folder)


def test_every_metric_has_a_value_for_each_seed_and_stability_one_for_each_pair(results):
    assert [r.arm for r in results] == [arm.name for arm in TINY.arms]
    for result in results:
        assert {len(values) for name, values in result.values.items() if not name.startswith("stability")} == {2}
        assert [len(result.values[name]) for name in ("stability_at_start", "stability")] == [1, 1]
        assert {"cosine", "f1", "r2", "l0", "parent_child", "across", "within"} <= result.values.keys()
        assert all(-1 <= value <= 20 for values in result.values.values() for value in values)


def test_a_study_continues_from_its_folder_and_tells_the_same(folder, results):
    trials = folder.list_folders("tree-0/trials")
    assert len(trials) == 4
    before = folder.at_path(f"tree-0/trials/{trials[0]}/dictionary").read("config.json")
    assert run_tiny(folder) == results
    assert folder.at_path(f"tree-0/trials/{trials[0]}/dictionary").read("config.json") == before


def test_a_folder_with_another_world_is_refused(folder, results):
    with pytest.raises(UserError, match="holds a world of other settings"):
        store_world(tree(640, seed=0), folder.at_path("tree-0/data"), {"world": "tree-0.5"})


def test_what_is_measured_is_the_dictionary_on_disk(folder, results):
    unseen = make_world("tree-0", 256, seed=1)
    trial = folder.list_folders("tree-0/trials")[0]
    one = learned(folder.at_path(f"tree-0/trials/{trial}"), unseen.rows_ND)
    assert isinstance(one, Learned)
    assert one.atoms_FD.shape == (20, 20)
    assert one.codes_NF.shape == (256, 20)
    assert "fvu" in one.held_out


def test_the_table_has_a_row_for_each_arm_and_the_document_every_value(results):
    assert study_table(results).row_count == 2
    document = study_document(results, StudyOptions(seeds=2))
    assert json.loads(json.dumps(document)) == document
    assert document["seeds"] == 2
    assert document["results"][0]["values"]["cosine"] == results[0].values["cosine"]


def test_a_cell_says_the_mean_and_its_standard_error():
    assert cell("cosine", [0.5]) == "0.500"
    assert cell("cosine", [0.5, 0.6, 0.1]) == "0.400 ±0.153"
    assert cell("stability", [0.5]) == "0.500"
    assert cell("cosine", None) == ""


def test_the_atoms_at_the_start_are_those_that_the_training_wrote(tmp_path):
    """Of a dictionary that starts from data; without the file they are computed again."""
    store, world = Store.at(str(tmp_path)), tree(640, seed=0)
    data = world_data("tree-0", store_world(world, store.at_path("tree-0/data"), {"world": "tree-0"}), store)
    arm = next(arm for arm in plans()["superposed"].arms if arm.name == "relaxed_archetypal")
    arm = replace(arm, options={**arm.options, "candidates": 30})
    trial = study_trial("tree-0", arm, replace(TINY, steps=2), data, 20, seed=3)
    train_once(trial.config, folder_of(trial, store))
    written = initial_atoms(trial.config, folder_of(trial, store))
    torch.testing.assert_close(written, initial_atoms(trial.config, store.at_path("empty")))
    folder_of(trial, store).write(INITIAL_FILE, save({"atoms": written + 1}))
    torch.testing.assert_close(initial_atoms(trial.config, folder_of(trial, store)), written + 1)
    measured = learned(folder_of(trial, store), world.rows_ND)
    assert measure_one(world, measured, False)["hull"] == measured.held_out["hull"] <= 1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"worlds": ("tree",)}, "world: 'tree' is unknown; known: superposed"),
        ({"seeds": 1}, "seeds: 1 must be at least 2"),
        ({"workers": -1}, "workers: -1 is below 0"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options, complaint):
    with pytest.raises(UserError, match=complaint):
        StudyOptions(**options)


def test_every_world_has_a_plan_whose_arms_have_names_of_their_own():
    assert plans().keys() == WORLDS.keys()
    for plan in plans().values():
        assert all(isinstance(arm, Arm) for arm in plan.arms)
        assert len({arm.name for arm in plan.arms}) == len(plan.arms)


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[tuple[str, str], dict[str, float]]:
    """Means over seeds of `--quick --json`, by world and dictionary."""
    folder = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "lexray", "bench", "ground-truth", "--quick", "--json", "--output", str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "16/16" in done.stderr
    results = json.loads(done.stdout)["results"]
    return {(r["world"], r["dictionary"]): {n: mean(v) for n, v in r["values"].items()} for r in results}


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_matching_pursuit_matches_the_tree_s_features_better_than_the_others(quick):
    pursuit = quick["tree-0.3", "mp"]
    assert pursuit["cosine"] > 0.93
    assert pursuit["r2"] > 0.98
    for other in ("relu", "topk, k 2", "batch_topk"):
        assert quick["tree-0.3", other]["cosine"] < pursuit["cosine"] - 0.01
        assert quick["tree-0.3", other]["r2"] > 0.95  # what they miss is the structure


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_the_hull_holds_the_atoms_of_relaxed_archetypal_dictionaries_and_they_agree_more_than_at_the_start(quick):
    topk, own = quick["superposed", "topk"], quick["superposed", "relaxed_archetypal, own candidates"]
    assert quick["superposed", "relaxed_archetypal"]["hull"] > 0.9
    assert own["hull"] > 0.9
    assert own["stability"] > own["stability_at_start"] + 0.1
    assert topk["stability"] > topk["stability_of_random"] + 0.3


@pytest.mark.slow
@pytest.mark.timeout(700)
def test_features_in_superposition_are_found_by_every_quick_dictionary(quick):
    found = {name: values["cosine"] for (world, name), values in quick.items() if world == "superposed"}
    assert len(found) == 4
    assert min(found.values()) > 0.85


@pytest.mark.slow
def test_the_study_trains_in_processes_of_their_own_as_it_does_in_this_one(tmp_path, monkeypatch):
    """Two workers, one world, few steps."""
    tiny = {name: StudyPlan(arms=plan.arms[:1], batch_rows=32, steps=4) for name, plan in plans().items()}
    monkeypatch.setattr("lexray.tuning.ground_truth.study.plans", lambda: tiny)
    heard = []
    options = {"worlds": ("tree-0",), "seeds": 2}

    def run(place: str, workers: int) -> list[Result]:
        store = Store.at(str(tmp_path / place))
        return run_study(StudyOptions(workers=workers, **options), store, lambda *said: heard.append(said[1:]))

    assert run("one", 1) == run("two", 2)
    assert heard == [(1, 2), (2, 2)] * 2
