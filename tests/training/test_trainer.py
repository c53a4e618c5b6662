"""Training a dictionary with DeepSpeed: it ends the same however often it is killed, and the same as plain Adam."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from quick_cases import FAMILIES, quick
from training_synthetic import BATCH_ROWS, STEPS, Dataset, small_config, small_dataset

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream, local_stream
from lexray.training.checkpoint.format import Checkpoint, checkpoint_folders, newest_checkpoint, step_of
from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
from lexray.training.config import OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.engines.batches import raw_rows
from lexray.training.loop.non_finite import NonFiniteStepError
from lexray.training.loop.result import TrainingResult
from lexray.training.loop.trainer import Trainer
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")

LEARNED = [name for name, made in ARCHITECTURES.items() if made.Config.learns_by == "gradient"]
FEW = ("topk", "batch_topk", "relu")
BUSY: dict[str, dict[str, Any]] = {
    "topk": {"k_start": 20, "k_anneal": 0.9},
    "relu": {"resample_every_rows": 640, "dead_after_rows": 64, "coefficient_warmup": 0.3},
    "batch_topk": {"resample_every_rows": 640, "dead_after_rows": 64, "normaliser": "whiten"},
    "matryoshka_batch_topk": {"random_prefixes": 3},
    "jumprelu": {"bias_init": "geometric_median", "preact_weight": 0.1},
    "gated": {"decoder_norm": "free"},
    "mp": {"resample_every_rows": 640, "dead_after_rows": 64},
}
"""Options with which more of a training's state changes from step to step."""


class KilledError(Exception):
    """Stands for anything that ends a worker."""


def killer(step: int):
    """Ends the training at the evaluation of `step`."""

    def on_evaluation(record: dict[str, float]) -> None:
        if record["step"] == step:
            raise KilledError

    return on_evaluation


def train(config: TrainingConfig, folder: Path, **options: Any) -> TrainingResult:
    return Trainer(config=config, store=Store.at(str(folder)), trial=config.trial, **options).run()


def kill(config: TrainingConfig, folder: Path, step: int) -> None:
    with pytest.raises(KilledError):
        train(config, folder, on_evaluation=killer(step))


class Outcome(NamedTuple):
    """All that a training leaves behind, but how fast it was."""

    dictionary: bytes
    checkpoint: Checkpoint
    records: list[dict[str, float]]


def outcome(folder: Path) -> Outcome:
    newest = newest_checkpoint(Store.at(f"{folder}/checkpoints"))
    assert newest is not None
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    records = [{k: v for k, v in line.items() if not k.startswith(("perf/", "data/"))} for line in lines]
    return Outcome((folder / "dictionary/dictionary.safetensors").read_bytes(), newest, records)


def assert_same_outcome(folder: Path, expected: Outcome) -> None:
    """Bit for bit."""
    found = outcome(folder)
    assert found.records == expected.records
    assert found.dictionary == expected.dictionary
    assert found.checkpoint.step == expected.checkpoint.step
    for mine, theirs in ((found.checkpoint.weights, expected.checkpoint.weights),
                         (found.checkpoint.moments, expected.checkpoint.moments)):  # fmt: skip
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


class Undisturbed(NamedTuple):
    config: TrainingConfig
    folder: Path
    result: TrainingResult
    outcome: Outcome
    evaluations: list[dict[str, float]]


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    """A training that nothing disturbed, by architecture and ZeRO stage; each is run once."""
    done: dict[tuple[str, int, bool], Undisturbed] = {}

    def by(name: str, stage: int = 0, *, busy: bool = False) -> Undisturbed:
        if (name, stage, busy) not in done:
            config = small_config(
                dataset, name, mesh=MeshConfig(zero_stage=stage), dictionary=BUSY.get(name, {}) if busy else {}
            )
            folder, evaluations = tmp_path_factory.mktemp(f"{name}{stage}"), []
            result = train(config, folder, on_evaluation=evaluations.append)
            done[name, stage, busy] = Undisturbed(config, folder, result, outcome(folder), evaluations)
        return done[name, stage, busy]

    return by


def stream_of(config: TrainingConfig, part: str = "train") -> BatchStream:
    return local_stream(config.data.stream_spec(part), batch_rows=config.data.batch_rows)


# Killed and resumed -----------------------------------------------------------------------------------------------


STAGES = [*((name, 0) for name in ARCHITECTURES), *((name, 1) for name in LEARNED)]
QUICK = [*((name, 0) for name in FAMILIES), *((name, 1) for name in FEW)]


@pytest.mark.parametrize(("name", "stage"), quick(STAGES, QUICK))
def test_killed_and_resumed_ends_bit_for_bit_as_undisturbed(undisturbed, tmp_path, name, stage):
    expected = undisturbed(name, stage, busy=True)
    kill(expected.config, tmp_path, step=50)
    assert train(expected.config, tmp_path).steps == STEPS - 40
    assert_same_outcome(tmp_path, expected.outcome)


@pytest.mark.parametrize(
    ("killed_at", "steps_left"),
    quick([(10, STEPS), (30, STEPS - 20), (STEPS, STEPS - 40)], [(STEPS, STEPS - 40)]),
)
def test_wherever_it_is_killed_it_goes_on_from_the_checkpoint_before(undisturbed, tmp_path, killed_at, steps_left):
    """Before the first checkpoint, between two, and after the last step but before its checkpoint."""
    expected = undisturbed("topk")
    kill(expected.config, tmp_path, step=killed_at)
    assert train(expected.config, tmp_path).steps == steps_left
    assert_same_outcome(tmp_path, expected.outcome)


def test_killed_many_times_it_still_ends_as_undisturbed(undisturbed, tmp_path):
    expected = undisturbed("batch_topk", 1)
    for step in (30, 40, 50, STEPS):
        kill(expected.config, tmp_path, step)
    assert train(expected.config, tmp_path).steps == STEPS - 40
    assert_same_outcome(tmp_path, expected.outcome)


def test_the_save_under_way_when_it_is_killed_is_finished(undisturbed, tmp_path):
    kill(undisturbed("topk").config, tmp_path, step=30)
    newest = newest_checkpoint(Store.at(f"{tmp_path}/checkpoints"))
    assert newest is not None
    assert newest.step == 20


def test_with_its_newest_checkpoint_damaged_it_goes_on_from_the_one_before(undisturbed, tmp_path, caplog):
    expected = undisturbed("relu")
    kill(expected.config, tmp_path, step=50)
    (newest,) = (tmp_path / "checkpoints").glob("step-000000040-*")
    damaged = newest / "part-00000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING, "lexray"):
        assert train(expected.config, tmp_path).steps == STEPS - 20
    assert any(newest.name in message for message in caplog.messages)
    assert_same_outcome(tmp_path, expected.outcome)


@pytest.mark.parametrize("stage", quick([0, 3], [3]))
def test_a_finished_training_that_is_started_again_changes_nothing(undisturbed, stage):
    before = undisturbed("batch_topk", stage)
    again = train(before.config, before.folder)
    assert again.steps == 0
    assert again.metrics == before.result.metrics
    assert_same_outcome(before.folder, before.outcome)


@pytest.mark.parametrize(("first", "then"), quick([(0, 1), (1, 0), (0, 3), (3, 2), (2, 1)], {(0, 3), (2, 1)}))
def test_a_checkpoint_goes_on_with_any_zero_stage(undisturbed, dataset, tmp_path, first, then):
    expected = undisturbed("topk")
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=first))
    kill(config, tmp_path, step=30)
    assert train(replace(config, mesh=MeshConfig(zero_stage=then)), tmp_path).steps == STEPS - 20
    found = outcome(tmp_path).checkpoint
    for name, moment in expected.outcome.checkpoint.moments.items():
        torch.testing.assert_close(found.moments[name], moment, rtol=1e-3, atol=1e-6)
    result, last = undisturbed("topk").result, outcome(tmp_path).records[-1]
    assert last["eval/fvu"] == pytest.approx(result.validation["fvu"], rel=1e-4)
    assert last["test/fvu"] == pytest.approx(result.metrics["fvu"], rel=1e-4)


def test_a_dictionary_large_enough_to_be_sharded_trains_and_starts_again_under_zero_3(dataset, tmp_path):
    """DeepSpeed keeps parameters of less than 100,000 numbers whole at every stage."""
    config = small_config(dataset, "topk", dictionary={"width": 9000}, rows=4 * BATCH_ROWS)
    sharded = replace(config, mesh=MeshConfig(zero_stage=3))
    whole, first = train(config, tmp_path / "whole"), train(sharded, tmp_path / "sharded")
    assert first.metrics == pytest.approx(whole.metrics, rel=1e-4)
    assert train(sharded, tmp_path / "sharded").metrics == first.metrics


# What it leaves behind --------------------------------------------------------------------------------------------


def test_every_log_and_evaluation_is_in_the_metrics_file_once(undisturbed):
    records = undisturbed("topk").outcome.records
    assert [r["step"] for r in records] == list(range(5, STEPS + 1, 5))
    assert all(r["rows"] == r["step"] * BATCH_ROWS for r in records)
    assert all({"train/loss", "train/fvu", "train/l0", "train/lr", "train/aux"} <= r.keys() for r in records)
    assert [r["step"] for r in records if "eval/fvu" in r] == list(range(10, STEPS + 1, 10))
    assert [r["step"] for r in records if "test/fvu" in r] == [STEPS]


def test_speed_is_in_the_metrics_file(undisturbed):
    lines = (undisturbed("topk").folder / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["perf/rows_per_s"] > 0 for line in lines)
    assert all(0 <= json.loads(line)["data/wait"] <= 1 for line in lines)


def test_what_the_data_cost_is_in_the_metrics_file(undisturbed):
    records = list(map(json.loads, (undisturbed("topk").folder / "metrics.jsonl").read_text().splitlines()))
    read = [record["data/bytes_read"] for record in records]
    assert 0 < read[0] <= read[-1]
    assert read == sorted(read)
    assert all(record["data/bytes_served"] > 0 for record in records)
    for name in ("hit_rate_disk", "retries"):
        assert {record[f"data/{name}"] for record in records} == {0}, "one stream alone, on a disk that works"
    # Windows on both sides of a cut between lanes may share a chunk that is just being read.
    assert all(record["data/hit_rate"] < 0.1 for record in records)


def test_every_evaluation_is_reported(undisturbed):
    done = undisturbed("relu")
    assert [e["step"] for e in done.evaluations] == list(range(10, STEPS + 1, 10))
    assert done.evaluations[-1]["eval/fvu"] == done.result.validation["fvu"]
    assert done.result.steps == STEPS


@pytest.mark.parametrize("name", quick(name for name in LEARNED if name != "jumprelu"))
def test_training_makes_the_dictionary_better(undisturbed, name):
    """Where the weights within the loss move with the training, the reconstruction is looked at."""
    records = undisturbed(name, busy=True).outcome.records
    first, last = (r["train/fvu" if "train/coefficient" in r else "train/loss"] for r in (records[0], records[-1]))
    assert last < (0.8 if name in FEW else 0.9) * first


def test_jumprelu_too_becomes_better_once_its_l0_has_come_to_the_target(dataset, tmp_path):
    train(small_config(dataset, "jumprelu", rows=3 * STEPS * BATCH_ROWS), tmp_path)
    records = outcome(tmp_path).records
    assert records[-1]["train/fvu"] < 0.8 * records[0]["train/fvu"]
    assert records[-1]["train/l0"] == pytest.approx(3, rel=0.3)


@pytest.mark.parametrize("name", quick(name for name in ARCHITECTURES if name not in LEARNED))
def test_a_baseline_learns_no_less_than_predicting_the_mean(undisturbed, name):
    records = undisturbed(name, busy=True).outcome.records
    assert records[-1]["eval/fvu"] < 0.9
    assert records[-1]["train/fvu"] <= records[0]["train/fvu"] * 1.05


@pytest.mark.parametrize("name", quick(ARCHITECTURES))
def test_the_saved_dictionary_has_the_reported_metrics(undisturbed, name):
    done = undisturbed(name, busy=True)
    held_out, data = stream_of(done.config, "test"), done.config.data
    rows = [raw_rows(batch, data) for batch in held_out.every_row(done.config.every.eval_rows)]
    found = evaluate(load_dictionary(f"{done.folder}/dictionary"), rows, sites=data.reconstructed)
    # Saved atoms no longer know the hull that they were mixed from.
    reported = {name: value for name, value in done.result.metrics.items() if name != "hull"}
    assert found == pytest.approx(reported, rel=1e-5)
    about = read_dictionary_config(Store.at(f"{done.folder}/dictionary"))
    assert about["held_out"]["fvu"] == done.result.metrics["fvu"]
    assert (about["trial"], about["data"]["id"]) == (done.config.trial, done.config.data.dataset_id)
    assert TrainingConfig.from_dict(about["training"]) == done.config


@pytest.mark.parametrize("name", quick(ARCHITECTURES))
def test_a_training_reports_its_metrics_at_every_budget_that_it_offers(undisturbed, name):
    done = undisturbed(name, busy=True)
    budgets = load_dictionary(f"{done.folder}/dictionary").eval_ks()
    assert [entry["k"] for entry in done.result.curve] == budgets
    if budgets:
        assert done.result.curve[-1]["fvu"] == pytest.approx(done.result.metrics["fvu"], rel=1e-6)


def test_the_newest_two_checkpoints_are_kept(undisturbed):
    folders = checkpoint_folders(Store.at(f"{undisturbed('topk').folder}/checkpoints"))
    assert [step_of(folder) for folder in folders] == [40, STEPS]


# Failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEW)
def test_a_loss_that_is_not_finite_ends_the_training_in_one_line(dataset, tmp_path, name):
    optimizer = OptimizerConfig(warmup=0.0)
    object.__setattr__(optimizer, "lr", 1e30)  # refused by itself: stands for whatever else diverges
    config = small_config(dataset, name, optimizer=optimizer)
    line = r"^step 2 is not finite: loss (inf|nan), .*; the gradient norm was [0-9.e+]+ a step before"
    with pytest.raises(NonFiniteStepError, match=line):
        train(config, tmp_path)
    assert not (tmp_path / "dictionary").exists()


def test_another_dataset_under_the_same_url_is_refused(dataset, tmp_path):
    config = small_config(dataset, "topk")
    other = replace(config, data=replace(config.data, dataset_id="0123"))
    with pytest.raises(UserError, match=f"now holds dataset {dataset.manifest.id}, the trial was configured for 0123"):
        train(other, tmp_path)


def test_a_site_that_the_dataset_does_not_have_is_refused(dataset, tmp_path):
    config = small_config(dataset, "topk")
    with pytest.raises(UserError, match="the dataset has no site 'layer9'; its sites are site, other"):
        train(replace(config, data=replace(config.data, inputs=("layer9",))), tmp_path)
