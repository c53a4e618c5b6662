"""Training on generated rows by the path of any dataset."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mesh_ranks import Task, on_processes, train
from training_synthetic import Dataset, Features, small_config

from lexray.storage.manifest import load_manifest
from lexray.storage.store import Store
from lexray.storage.synthetic_url import parse
from lexray.training.checkpoint.saved import load_dictionary
from lexray.training.loop.trainer import Trainer
from lexray.tuning.ground_truth.large import measure_recovery

pytestmark = pytest.mark.usefixtures("process_group")
URL = "synthetic://synthsaebench-1k?rows=50000&seed=0"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    store, none = Store.at(URL), torch.empty(0)
    return Dataset(store, load_manifest(store), Features(none, none, none))


def test_two_data_workers_train_what_one_does(dataset: Dataset, tmp_path: Path) -> None:
    task = Task(name="topk", data=2, zero_stage=1, steps=20)
    expected = train(Task(name="topk", steps=20).config(dataset), 0)
    for found in on_processes([task], dataset, tmp_path)[task]:
        assert found.losses == pytest.approx(expected.losses, rel=1e-5)
        assert sum(int((a - b).abs().sum()) for a, b in zip(found.fired, expected.fired, strict=True)) <= 1
        for name, tensor in expected.state.items():
            torch.testing.assert_close(found.state[name], tensor, rtol=0, atol=1e-4, msg=name)


def test_a_trained_dictionary_is_judged_on_the_features_that_its_rows_are_made_of(dataset: Dataset, tmp_path) -> None:
    config = small_config(dataset, "topk", dictionary={"width": 64, "target_l0": 4}, rows=300 * 64)
    Trainer(config=config, store=Store.at(str(tmp_path)), trial="t").run()
    dictionary = load_dictionary(str(tmp_path / "dictionary"))
    found = measure_recovery(dictionary, parse(URL), max_rows=3000)
    other = measure_recovery(dictionary, parse(URL + "&features_seed=7"), max_rows=3000)
    assert found.rows == 3072
    assert 3 < found.l0 <= 4  # of 4 that are kept, some are 0
    assert found.mcc > other.mcc + 0.15
    assert found.f1 > 3 * other.f1
    assert found.bands[0].cosine > found.bands[-1].cosine + 0.05
    assert found.r2 == pytest.approx(1 - fvu_of(tmp_path), abs=0.05)


def fvu_of(folder: Path) -> float:
    """FVU on its own test rows, by the trainer."""
    from lexray.training.checkpoint.saved import read_dictionary_config

    return float(read_dictionary_config(Store.at(str(folder / "dictionary")))["held_out"]["fvu"])
