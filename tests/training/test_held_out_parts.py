"""A training is steered by validation rows alone; test rows are first opened when it is over."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from training_synthetic import STEPS, Dataset, small_config, small_dataset

from lexray.storage.reader import DatasetReader
from lexray.storage.store import Store
from lexray.storage.windows import LocalWindows, StreamSpec, Window, WindowReader, WindowSource
from lexray.training.checkpoint.saved import read_dictionary_config
from lexray.training.loop.result import TrainingResult
from lexray.training.loop.trainer import Trainer

pytestmark = pytest.mark.usefixtures("process_group")


@dataclass
class Recorder:
    """Opens streams, and remembers which parts were opened, in order, and which rows came of each."""

    opened: list[str] = field(default_factory=list)
    rows: dict[str, set[int]] = field(default_factory=dict)

    def __call__(self, spec: StreamSpec) -> WindowSource:
        part, rows = spec.selection.part, self.rows.setdefault(spec.selection.part, set())
        self.opened.append(part)

        class Recorded(LocalWindows):
            def fetch(self, handle: object) -> Window:
                window = super().fetch(handle)
                rows.update(window.row_ids.tolist())
                return window

        return Recorded(WindowReader(spec))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def train(dataset: Dataset, folder: Path, recorder: Recorder, **options: Any) -> TrainingResult:
    """A training with a controller that hears evaluations."""
    config = small_config(dataset, "relu", rows=2 * STEPS * 64)
    return Trainer(config=config, store=Store.at(str(folder)), open_stream=recorder, **options).run()


def test_training_controller_and_stopping_never_open_the_test_part(dataset: Dataset, tmp_path: Path) -> None:
    recorder, looks = Recorder(), []

    def look(*_: Any) -> str:
        looks.append(list(recorder.opened))
        return ""

    found = train(dataset, tmp_path, recorder, should_stop=look, should_pause=look, on_evaluation=look)
    assert found.ended == "done"
    assert len(looks) > 2 * STEPS / 5
    assert all(opened == ["train", "validation"] for opened in looks)
    assert recorder.opened == ["train", "validation", "test"]
    reader = DatasetReader(dataset.store, dataset.manifest)
    document_of = [document for part in reader.column_parts("document") for document in part.tolist()]
    documents = [{document_of[row] for row in recorder.rows[part]} for part in ("train", "validation", "test")]
    assert sum(map(len, documents)) == len(set.union(*documents)) == len(set(document_of))


def test_what_is_reported_is_of_test_rows_and_what_steered_stands_beside_it(dataset: Dataset, tmp_path: Path) -> None:
    found = train(dataset, tmp_path, Recorder())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    for name in ("fvu", "l0", "explained_variance", "dead_fraction"):
        assert (last[f"test/{name}"], last[f"eval/{name}"]) == (found.metrics[name], found.validation[name])
    assert found.metrics["fvu"] != found.validation["fvu"]
    about = read_dictionary_config(Store.at(str(tmp_path / "dictionary")))["held_out"]
    assert (about["part"], about["fvu"]) == ("test", found.metrics["fvu"])


def test_a_training_that_is_paused_leaves_the_test_part_closed(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    assert train(dataset, tmp_path, recorder, should_pause=lambda: "night").ended == "paused"
    assert recorder.opened == ["train", "validation"]


def test_one_that_is_stopped_is_reported_by_test_rows_too(dataset: Dataset, tmp_path: Path) -> None:
    recorder = Recorder()
    found = train(dataset, tmp_path, recorder, should_stop=lambda records: "beaten")
    assert (found.ended, recorder.opened[-1]) == ("stopped", "test")
    assert found.metrics["fvu"] != found.validation["fvu"]
