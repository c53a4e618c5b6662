"""Trains every arm on every synthetic dataset with several seeds, and measures the recovered features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from itertools import combinations
from multiprocessing import get_context
from statistics import mean
from typing import NamedTuple

from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.manifest import Manifest
from lexray.storage.store import Store
from lexray.training.config import DataConfig, EveryConfig, TrainingConfig
from lexray.training.dictionaries import dictionary_config
from lexray.training.measures.matching import match, pair_stability, random_stability
from lexray.tuning.ground_truth.arms import Arm, StudyPlan, plans
from lexray.tuning.ground_truth.recovery import activation_f1, hierarchy, identifiability
from lexray.tuning.ground_truth.running import SITE, Learned, initial_atoms, learned, store_world, train_once
from lexray.tuning.ground_truth.worlds import WORLDS, World, make_world

TRAINING_ROWS, UNSEEN_ROWS = 65_536, 4096
TRAINING_SEED, UNSEEN_SEED = 0, 1
QUICK_SEEDS, SEEDS = 2, 3
MAX_WORKERS = 8

Progress = Callable[[str, int, int], None]
"""Called after each training with its name, the number finished, and the total."""


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Options of a study."""

    worlds: tuple[str, ...] = ()
    """Names of datasets; empty: all (of `--quick`)."""
    seeds: int | None = None
    """Seeds of each arm; None: 3, or 2 for a quick study."""
    quick: bool = False
    """Use few datasets and arms."""
    workers: int = 0
    """Number of processes; 0: one for each core, at most 8."""

    def __post_init__(self) -> None:
        for name in self.worlds:
            if name not in WORLDS:
                raise UserError(f"world: {name!r} is unknown; known: {', '.join(WORLDS)}")
        if self.seeds is not None and self.seeds < 2:
            raise UserError(f"seeds: {self.seeds} must be at least 2, or nothing can be said of stability")
        if self.workers < 0:
            raise UserError(f"workers: {self.workers} is below 0")

    @property
    def num_seeds(self) -> int:
        return self.seeds or (QUICK_SEEDS if self.quick else SEEDS)

    @property
    def num_workers(self) -> int:
        return self.workers or min(MAX_WORKERS, os.cpu_count() or 1)


class StudyTrial(NamedTuple):
    """One training of a study."""

    world: str
    arm: Arm
    config: TrainingConfig


class Result(NamedTuple):
    """Metrics of an arm on a dataset: one value for each seed, or each pair of seeds (stability)."""

    world: str
    arm: str
    values: dict[str, list[float]]


def run_study(options: StudyOptions, folder: Store, on_progress: Progress) -> list[Result]:
    """Write the datasets, train what is not trained yet, and measure, all under `folder`."""
    every = plans()
    names = options.worlds or tuple(n for n in WORLDS if every[n].quick or not options.quick)
    trials: list[StudyTrial] = []
    for name in names:
        world = make_world(name, TRAINING_ROWS, seed=TRAINING_SEED)
        manifest = store_world(world, folder.at_path(f"{name}/data"), {"world": name, "seed": TRAINING_SEED})
        trials += trials_of(name, world, every[name], manifest, folder, options)
    train_all(trials, folder, options.num_workers, on_progress)
    return [result for name in names for result in measure_world(name, every[name], trials, folder)]


def trials_of(
    name: str, world: World, plan: StudyPlan, manifest: Manifest, folder: Store, options: StudyOptions
) -> Iterator[StudyTrial]:
    """Yield every training on a dataset: arms times seeds.

    A seed draws the initial weights, the order of the rows and which twentieth of them is held out: with the same rows
    in the same order, dictionaries that start from shared candidates would not differ at all.
    """
    data = world_data(name, manifest, folder)
    for arm in plan.arms:
        if arm.quick or not options.quick:
            for seed in range(options.num_seeds):
                yield study_trial(name, arm, plan, data, len(world.features_GD), seed)


def world_data(name: str, manifest: Manifest, folder: Store) -> DataConfig:
    """Return the rows of a world that `store_world` wrote."""
    return DataConfig(url=folder.at_path(f"{name}/data").url, dataset_id=manifest.id, inputs=(SITE,))


def study_trial(name: str, arm: Arm, plan: StudyPlan, data: DataConfig, num_features: int, seed: int) -> StudyTrial:
    """Return one training of an arm. `data` is `world_data`."""
    dictionary = dictionary_config({
        "width": num_features,
        "sample_rows": TRAINING_ROWS,  # all, so that shared candidates hardly depend on the order
        **arm.setting.options(arm.options, plan.batch_rows),
    })  # fmt: skip
    steps = plan.steps
    return StudyTrial(name, arm, TrainingConfig(
        dictionary=dictionary,
        data=replace(data, batch_rows=plan.batch_rows, seed=seed),
        rows=steps * plan.batch_rows,
        optimizer=replace(arm.optimizer, lr=arm.setting.lr),
        seed=seed,
        every=EveryConfig(log=500, evaluate=max(1, steps // 5), checkpoint=steps, eval_rows=2048),
    ))  # fmt: skip


def folder_of(trial: StudyTrial, folder: Store) -> Store:
    """Return the folder of a training."""
    return folder.at_path(f"{trial.world}/trials/{trial.config.trial}")


def train_all(trials: list[StudyTrial], folder: Store, workers: int, on_progress: Progress) -> None:
    """Train in `workers` processes; the first failure ends the study."""
    if workers == 1:
        for done, trial in enumerate(trials, 1):
            train_once(trial.config, folder_of(trial, folder))
            on_progress(f"{trial.world}: {trial.arm.name}", done, len(trials))
        return
    # Forked processes would share the thread pools and the process group of this one.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(train_once, t.config, folder_of(t, folder)): t for t in trials}
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                trial = futures[future]
                on_progress(f"{trial.world}: {trial.arm.name}", done, len(trials))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# Measuring ---------------------------------------------------------------------------------------------------------


def measure_world(name: str, plan: StudyPlan, trials: list[StudyTrial], folder: Store) -> list[Result]:
    """Return one result for each arm that was trained on this dataset."""
    unseen = make_world(name, UNSEEN_ROWS, seed=UNSEEN_SEED)
    results = []
    for arm in plan.arms:
        mine = [t for t in trials if t.world == name and t.arm == arm]
        if not mine:
            continue
        found = [learned(folder_of(t, folder), unseen.rows_ND) for t in mine]
        starts = [initial_atoms(t.config, folder_of(t, folder)) for t in mine]
        results.append(Result(name, arm.name, measure_arm(unseen, found, starts, plan.identifiable)))
    return results


def measure_arm(
    unseen: World, found: list[Learned], starts: list[Tensor], identifiable: bool
) -> dict[str, list[float]]:
    """Return all metrics of an arm. `starts` are the atoms before the first step, one (F, D) for each seed."""
    each = [measure_one(unseen, one, identifiable) for one in found]
    values = {metric: [one[metric] for one in each] for metric in each[0]}
    return values | stability_of_arm(found, starts)


def stability_of_arm(found: list[Learned], starts: list[Tensor]) -> dict[str, list[float]]:
    """Return the stability of every pair of seeds, now and before the first step, without latents that are dead now."""
    lives = [(one.codes_NF != 0).any(0) for one in found]
    values = {"dead": [float((~lives_F).double().mean()) for lives_F in lives]}
    ends = [one.atoms_FD[lives_F] for one, lives_F in zip(found, lives, strict=True)]
    began = [atoms_FD[lives_F] for atoms_FD, lives_F in zip(starts, lives, strict=True)]
    for name, atoms in (("stability_at_start", began), ("stability", ends)):
        values[name] = [pair_stability(*pair).cosine for pair in combinations(atoms, 2)]
    values["stability_of_random"] = [random_stability(round(mean(map(len, ends))), ends[0].shape[1])]
    return values


def measure_one(unseen: World, one: Learned, identifiable: bool) -> dict[str, float]:
    """Return the recovery metrics of one dictionary, by name."""
    matched = match(unseen.features_GD, one.atoms_FD)
    values = {
        "cosine": float(matched.cosines_P.sum()) / len(unseen.features_GD),
        "f1": float(activation_f1(matched, unseen.present_NG, one.codes_NF).mean()),
        "r2": 1 - one.held_out["fvu"],
        "l0": float((one.codes_NF != 0).sum(1).double().mean()),
        "true_l0": unseen.l0,
    }
    if "hull" in one.held_out:
        values["hull"] = one.held_out["hull"]
    if unseen.parents:
        values |= hierarchy(unseen.features_GD, one.atoms_FD, unseen.parents, unseen.levels)._asdict()
    if identifiable:
        accuracy, balanced = identifiability(one.codes_NF, unseen.present_NG)
        values |= {"identifiability": accuracy, "identifiability_balanced": balanced}
    return values
