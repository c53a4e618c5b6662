"""Chooses learning rate and AuxK of every family, on a grid that all families share, in one world of each kind.

The learning rate first, with the usual AuxK; then AuxK at that learning rate, where the family can have it. Judged by
the matched cosine of one training each, as long as those of the study. Rows, features and seed are others than the
study's, so that no choice profits from the rows that judge it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from lexray.storage.store import Store
from lexray.training.config import DataConfig
from lexray.tuning.ground_truth.arms import Arm, plans
from lexray.tuning.ground_truth.recovery import matched_cosine
from lexray.tuning.ground_truth.running import learned, store_world
from lexray.tuning.ground_truth.settings import AUXK, LEARNING_RATES, TUNED_ON, Setting, Tried, best
from lexray.tuning.ground_truth.study import (
    TRAINING_ROWS,
    UNSEEN_ROWS,
    Progress,
    StudyTrial,
    folder_of,
    study_trial,
    train_all,
    world_data,
)
from lexray.tuning.ground_truth.worlds import WORLDS, World, make_world

ROWS_SEED, UNSEEN_SEED, FEATURE_SEED, TRIAL_SEED = 100, 101, 20_250_604, 100
TUNED_WORLDS = tuple(name for name in WORLDS if TUNED_ON[name] == name)

TriedBy = dict[str, dict[str, list[Tried]]]
"""Settings that were tried, by world and family."""


def tune(worlds: tuple[str, ...], folder: Store, workers: int, on_progress: Progress) -> TriedBy:
    """Train the grid in these worlds, by default in all `TUNED_WORLDS`, and return what was tried."""
    names = [name for name in TUNED_WORLDS if name in worlds or not worlds]
    tried: TriedBy = {name: {} for name in names}
    arms = [(name, arm) for name in names for arm in families(name)]
    rates = [(name, arm, Setting(lr=lr)) for name, arm in arms for lr in LEARNING_RATES]
    train_settings(rates, folder, workers, on_progress, tried)
    kinds = [
        (name, arm, Setting(lr=best(tried[name][arm.name]).lr, auxk=auxk))
        for name, arm in arms
        for auxk in AUXK
        if auxk != "usual" and has_auxk(arm)
    ]
    train_settings(kinds, folder, workers, on_progress, tried)
    return tried


def families(world: str) -> Iterator[Arm]:
    """Yield the arms that are tuned."""
    return (arm for arm in plans({})[world].arms if arm.is_family)


def train_settings(
    settings: list[tuple[str, Arm, Setting]], folder: Store, workers: int, on_progress: Progress, tried: TriedBy
) -> None:
    """Train an arm of a world with each of its settings, and add the outcomes to `tried`."""
    data, plan = {name: stored(name, folder) for name in tried}, plans({})
    made = [
        study_trial(name, replace(arm, setting=setting), plan[name], *data[name], seed=TRIAL_SEED)
        for name, arm, setting in settings
    ]
    train_all(made, folder, workers, on_progress)
    for trial in made:
        tried[trial.world].setdefault(trial.arm.name, []).append(outcome(trial, folder))


def stored(name: str, folder: Store) -> tuple[DataConfig, int]:
    """Write the rows of a world unless they are there, and return them with the number of features."""
    world = tuning_world(name, TRAINING_ROWS, ROWS_SEED)
    provenance = {"world": name, "seed": ROWS_SEED, "feature_seed": FEATURE_SEED}
    manifest = store_world(world, folder.at_path(f"{name}/data"), provenance)
    return world_data(name, manifest, folder), len(world.features_GD)


def tuning_world(name: str, rows: int, seed: int) -> World:
    """Return rows of a world of other features than the study's."""
    return make_world(name, rows, seed=seed, feature_seed=FEATURE_SEED)


def outcome(trial: StudyTrial, folder: Store) -> Tried:
    """Return the matched cosine and the L0 of a training."""
    unseen = tuning_world(trial.world, UNSEEN_ROWS, UNSEEN_SEED)
    one, setting = learned(folder_of(trial, folder), unseen.rows_ND), trial.arm.setting
    l0 = float((one.codes_NF != 0).sum(1).double().mean()) / trial.config.dictionary.target_l0
    cosine = matched_cosine(unseen.features_GD, one.atoms_FD)
    return Tried(lr=setting.lr, auxk=setting.auxk, cosine=round(cosine, 4), l0=round(l0, 3))


def has_auxk(arm: Arm) -> bool:
    """Whether its code can have AuxK."""
    return arm.setting.options(arm.options, 1) != arm.options
