"""A training that ends before its last step: what it leaves, and that a pause loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_synthetic import STEPS, Dataset, on_two_ranks, small_config, small_dataset

from lexray.storage.store import Store
from lexray.training.checkpoint.format import newest_checkpoint
from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
from lexray.training.loop.result import TrainingResult
from lexray.training.loop.stopping import Ending, StopCheck
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.axes import ONE_PROCESS

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def train(dataset: Dataset, folder: Path, **options: Any) -> TrainingResult:
    config = small_config(dataset, "batch_topk")
    return Trainer(config=config, store=Store.at(str(folder)), trial=config.trial, **options).run()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_dictionary(str(folder / "dictionary")).state_dict()


def steps_logged(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_verdict_ends_a_training_at_its_evaluation_and_leaves_the_dictionary_of_that_step(dataset, tmp_path):
    seen: list[list[int]] = []

    def should_stop(records) -> str:
        seen.append([record["step"] for record in records if "eval/fvu" in record])
        return "enough" if seen[-1][-1] >= STEPS // 2 else ""

    result = train(dataset, tmp_path / "stopped", should_stop=should_stop)
    assert (result.ended, result.reason) == ("stopped", "enough")
    assert result.steps == seen[-1][-1] < STEPS
    assert seen == [seen[-1][: i + 1] for i in range(len(seen))]  # asked once after each evaluation
    about = read_dictionary_config(Store.at(str(tmp_path / "stopped" / "dictionary")))
    assert about["held_out"]["fvu"] == result.metrics["fvu"]
    assert steps_logged(tmp_path / "stopped")[-1] == result.steps


def test_a_training_that_is_never_told_to_end_is_not_changed_by_being_asked(dataset, tmp_path):
    train(dataset, tmp_path / "plain")
    result = train(dataset, tmp_path / "asked", should_stop=lambda records: "", should_pause=lambda: "")
    assert (result.ended, result.steps) == ("done", STEPS)
    plain, asked = weights(tmp_path / "plain"), weights(tmp_path / "asked")
    assert all(torch.equal(plain[name], asked[name]) for name in plain)


def test_a_pause_saves_the_state_of_its_step_and_the_training_goes_on_as_if_there_had_been_none(dataset, tmp_path):
    train(dataset, tmp_path / "plain")
    asked = iter(["", "", "night"])
    result = train(dataset, tmp_path / "paused", should_pause=lambda: next(asked))
    assert (result.ended, result.reason) == ("paused", "night")
    newest = newest_checkpoint(Store.at(str(tmp_path / "paused" / "checkpoints")))
    assert newest is not None
    assert newest.step == result.steps < STEPS
    assert steps_logged(tmp_path / "paused")[-1] == result.steps
    assert not (tmp_path / "paused" / "dictionary").exists()
    again = train(dataset, tmp_path / "paused")
    assert (again.ended, again.steps) == ("done", STEPS - result.steps)
    plain, paused = weights(tmp_path / "plain"), weights(tmp_path / "paused")
    assert all(torch.equal(plain[name], paused[name]) for name in plain)
    assert steps_logged(tmp_path / "paused") == steps_logged(tmp_path / "plain")


def test_a_reason_that_comes_with_the_last_step_ends_nothing(dataset, tmp_path):
    reasons = {STEPS: "too late"}
    result = train(dataset, tmp_path / "done", should_stop=lambda records: reasons.get(records[-1]["step"], ""))
    assert (result.ended, result.steps) == ("done", STEPS)


def test_all_ranks_end_at_the_step_at_which_the_first_is_given_a_reason():
    def ends(rank, axes):
        asked = iter(["", "", "late"])
        check = StopCheck("paused", 10, 60, (lambda: next(asked)) if rank == 0 else None, axes.pairs)
        return [check(step) for step in (5, 10, 20, 30)]

    assert on_two_ranks(ends) == [[None, None, None, Ending("paused", reason)] for reason in ("late", "")]


def test_nothing_is_asked_after_the_last_step():
    check = StopCheck("stopped", 10, 60, lambda: "too late", ONE_PROCESS.pairs)
    assert check(60) is None
