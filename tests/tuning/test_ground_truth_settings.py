"""The study's settings: one grid for all families, chosen on other rows and features than those that judge."""

import json
from dataclasses import replace

import pytest
import torch

from lexray.storage.store import Store
from lexray.tuning.ground_truth import tuning
from lexray.tuning.ground_truth.arms import plans
from lexray.tuning.ground_truth.settings import (
    AUXK,
    LEARNING_RATES,
    TUNED_FILE,
    TUNED_ON,
    Setting,
    Tried,
    best,
    read_tuned,
    setting_of,
    tuned_text,
)
from lexray.tuning.ground_truth.study import TRAINING_ROWS, TRAINING_SEED, UNSEEN_SEED
from lexray.tuning.ground_truth.worlds import WORLDS, make_world


def tried(cosine: float, l0: float = 1.0, lr: float = 1e-2) -> Tried:
    return Tried(lr=lr, auxk="usual", cosine=cosine, l0=l0)


def test_the_best_setting_has_the_largest_cosine_among_those_that_hold_the_l0():
    assert best([tried(0.5), tried(0.9, l0=1.2), tried(0.6, l0=0.7)]).cosine == 0.6
    assert best([tried(0.5, l0=2.0), tried(0.9, l0=1.2)]).cosine == 0.9


@pytest.mark.parametrize(
    ("architecture", "auxk", "expected"),
    [
        ("topk", "strong", {"aux_weight": 1.0, "dead_after_rows": 640}),
        ("topk", "off", {"aux_weight": 0.0}),
        ("relaxed_archetypal", "usual", {"aux_weight": 1 / 32}),
        ("relu", "strong", {"terms": {"auxk": 1.0}, "dead_after_rows": 640}),
        ("jumprelu", "off", {}),
        ("mp", "strong", {}),
    ],
)
def test_auxk_is_an_option_of_every_linear_family(architecture, auxk, expected):
    assert Setting(auxk=auxk).options({"architecture": architecture}, 64) == {"architecture": architecture, **expected}


def test_every_family_of_every_world_has_a_setting_from_the_same_grid():
    for name, plan in plans().items():
        for arm in plan.arms:
            found = read_tuned()[TUNED_ON[name]][arm.family]
            rates = [one.lr for one in found if one.auxk == "usual"]
            kinds = [one.auxk for one in found if one.lr == best(found).lr]
            assert set(rates) == set(LEARNING_RATES)
            assert set(kinds) == (set(AUXK) if tuning.has_auxk(arm) else {"usual"})
            assert arm.setting == setting_of(read_tuned(), name, arm.family) == best(found).setting


def test_variants_have_the_setting_of_a_family_that_is_tuned():
    for plan in plans().values():
        families = {arm.name for arm in plan.arms if arm.is_family}
        assert {arm.family for arm in plan.arms} == families


@pytest.mark.parametrize("name", WORLDS)
def test_settings_are_chosen_on_other_rows_and_features_than_the_study_s(name):
    judged, chosen = make_world(name, 64, seed=TRAINING_SEED), tuning.tuning_world(name, 64, tuning.ROWS_SEED)
    assert not torch.equal(judged.features_GD, chosen.features_GD)
    assert not torch.equal(judged.present_NG, chosen.present_NG)
    assert not {TRAINING_SEED, UNSEEN_SEED} & {tuning.ROWS_SEED, tuning.UNSEEN_SEED, tuning.TRIAL_SEED}
    assert TRAINING_ROWS > 64


def test_the_file_says_what_was_tried_and_chosen():
    assert TUNED_FILE.read_text() == tuned_text(read_tuned()) + "\n"
    content = json.loads(TUNED_FILE.read_text())
    assert set(content) == set(tuning.TUNED_WORLDS)


def test_the_grid_tries_learning_rates_and_then_auxk_at_the_best(tmp_path, monkeypatch):
    """Three steps of a family with AuxK and of one without."""
    monkeypatch.setattr(tuning, "TRAINING_ROWS", 4096)
    monkeypatch.setattr("lexray.tuning.ground_truth.study.TRAINING_ROWS", 4096)
    arms = [arm for arm in plans({})["superposed"].arms if arm.name in ("topk", "mp")]
    monkeypatch.setattr(tuning, "families", lambda world: iter(arms))
    short = {name: replace(plan, steps=3) for name, plan in plans({}).items()}
    monkeypatch.setattr(tuning, "plans", lambda tuned: short)
    heard: list[str] = []
    found = tuning.tune(("superposed",), Store.at(str(tmp_path)), 1, lambda name, done, total: heard.append(name))
    assert [(one.lr, one.auxk) for one in found["superposed"]["mp"]] == [(lr, "usual") for lr in LEARNING_RATES]
    topk = found["superposed"]["topk"]
    rate = best(topk[: len(LEARNING_RATES)]).lr
    assert [(one.lr, one.auxk) for one in topk[len(LEARNING_RATES) :]] == [(rate, "off"), (rate, "strong")]
    assert len(heard) == 8
