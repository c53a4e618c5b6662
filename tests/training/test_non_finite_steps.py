"""A step that is not finite: the trial resumes once, and ends as if nothing had been or in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from quick_cases import quick
from training_synthetic import STEPS, Dataset, small_config, small_dataset

from lexray.storage.order import WindowKey
from lexray.storage.store import Store
from lexray.storage.windows import LocalWindows, StreamSpec, Window, WindowReader, WindowSource
from lexray.training.checkpoint.format import newest_checkpoint
from lexray.training.config import TrainingConfig
from lexray.training.loop.non_finite import MAX_REASON, RESUMED, NonFiniteStepError, resume_once
from lexray.training.loop.result import TrainingResult
from lexray.training.loop.trainer import Trainer
from lexray.training.mesh.mesh import ONE_RANK
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")

HIT = WindowKey(0, 0, 1)
"""The window whose rows are damaged in memory: it begins after the first checkpoint, at step 20."""


@dataclass
class FaultyMemory:
    """Opens streams on a machine that damages training rows the first few times that it holds them."""

    times: int
    handles: list[Any] = field(default_factory=list)

    def __call__(self, spec: StreamSpec) -> WindowSource:
        memory = self

        class Faulty(LocalWindows):
            def request(self, key: WindowKey, *, wanted_from: WindowKey | None = None) -> Any:
                handle = super().request(key, wanted_from=wanted_from)
                if key == HIT and spec.selection.part == "train":
                    memory.handles.append(handle)
                return handle

            def fetch(self, handle: Any) -> Window:
                window = super().fetch(handle)
                if not any(handle is one for one in memory.handles) or not memory.times:
                    return window
                memory.times -= 1
                return window._replace(vectors={name: np.full_like(v, np.nan) for name, v in window.vectors.items()})

        return Faulty(WindowReader(spec))


def train(config: TrainingConfig, folder: Path, faults: int, **options: Any) -> TrainingResult:
    return Trainer(config=config, store=Store.at(str(folder)), open_stream=FaultyMemory(faults), **options).run()


def left_behind(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    records = [{k: v for k, v in line.items() if not k.startswith(("perf/", "data/"))} for line in lines]
    return (folder / "dictionary/dictionary.safetensors").read_bytes(), records


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def config_of(dataset: Dataset, name: str = "batch_topk", **mesh: Any) -> TrainingConfig:
    return small_config(dataset, name, mesh=MeshConfig(**mesh))


FIRST = r"step 3\d is not finite: loss nan, error nan, [^;]*; the gradient norm was [\d.]+ a step before"
LINE = rf"{FIRST}; the trial had resumed from its newest checkpoint once already \({FIRST}\); lower the learning rate"


@pytest.mark.parametrize(
    ("name", "stage"), quick([("batch_topk", 0), ("batch_topk", 2), ("kmeans", 0)], {("batch_topk", 2)})
)
def test_after_a_fault_the_training_ends_as_if_there_had_been_none(
    dataset: Dataset, tmp_path: Path, name: str, stage: int
) -> None:
    config = config_of(dataset, name, zero_stage=stage)
    train(config, tmp_path / "plain", faults=0)
    found = train(config, tmp_path / "hit", faults=1)
    assert found.steps == STEPS - 20, "from the newest checkpoint"
    assert left_behind(tmp_path / "hit") == left_behind(tmp_path / "plain")
    assert "step 3" in json.loads((tmp_path / "hit" / RESUMED).read_text())["reason"]
    assert not (tmp_path / "plain" / RESUMED).exists()


def test_a_step_that_fails_again_ends_the_trial_in_one_line_beside_its_checkpoint(
    dataset: Dataset, tmp_path: Path
) -> None:
    config, memory = config_of(dataset), FaultyMemory(10)
    with pytest.raises(NonFiniteStepError) as caught:
        Trainer(config=config, store=Store.at(str(tmp_path)), open_stream=memory).run()
    assert re.fullmatch(LINE, str(caught.value))
    assert memory.times == 8, "tried twice"
    assert not (tmp_path / "dictionary").exists()
    checkpoint = newest_checkpoint(Store.at(str(tmp_path / "checkpoints")))
    assert checkpoint is not None
    assert checkpoint.step == 20
    assert all(tensor.isfinite().all() for tensor in checkpoint.weights.values())


def test_the_count_outlives_the_process_and_a_later_run_may_still_pass(dataset: Dataset, tmp_path: Path) -> None:
    config = config_of(dataset)
    with pytest.raises(NonFiniteStepError):
        train(config, tmp_path, faults=10)
    with pytest.raises(NonFiniteStepError, match=LINE):
        train(config, tmp_path, faults=1)
    assert train(config, tmp_path, faults=0).ended == "done"


# Two ranks --------------------------------------------------------------------------------------------------------


def _on_two(work: Callable[..., None], *args: Any, folder: Path) -> list[str]:
    torch.multiprocessing.spawn(work, args=(*args, str(folder)), nprocs=2)
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def _pass_and_fail(rank: int, configs: list[TrainingConfig], folder: str) -> None:
    """Train each with a fault that passes and with one that stays; rank 0 alone holds the damaged rows."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    lines = []
    for number, config in enumerate(configs):
        where = Path(folder) / str(number)
        result = train(config, where / "hit", faults=1, rank=rank, num_ranks=2)
        lines.append(f"{result.ended} {result.steps}")
        try:
            train(config, where / "fail", faults=10, rank=rank, num_ranks=2)
        except NonFiniteStepError as error:
            lines.append(str(error))
    Path(f"{folder}/{rank}.txt").write_text("\n".join(lines))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_resume_together_and_fail_together(dataset: Dataset, tmp_path: Path) -> None:
    configs = [config_of(dataset, data=2, zero_stage=stage) for stage in (0, 2)]
    texts = _on_two(_pass_and_fail, configs, folder=tmp_path)
    assert texts[0] == texts[1]
    for number, (passed, failed) in enumerate(zip(*[iter(texts[0].splitlines())] * 2, strict=True)):
        assert passed == f"done {STEPS - 20}"
        assert re.fullmatch(LINE, failed)
        assert (tmp_path / str(number) / "hit" / "dictionary").exists()
        alone = replace(configs[number], mesh=MeshConfig())
        fvu = train(alone, tmp_path / f"alone{number}", faults=0).validation["fvu"]
        _, records = left_behind(tmp_path / str(number) / "hit")
        assert records[-1]["eval/fvu"] == pytest.approx(fvu, rel=1e-3)


@pytest.mark.parametrize(
    "document", [b"{", b"[]", b'{"reason": 3}', b'{"reason": "' + b"x" * 10**7 + b'"}', b"[" * 10**5, b"\xff"], ids=len
)
def test_a_damaged_record_of_a_resume_counts_as_one_and_is_quoted_in_few_words(document, tmp_path):
    store = Store.at(str(tmp_path))
    store.write(RESUMED, document)
    with pytest.raises(NonFiniteStepError, match="had resumed from its newest checkpoint once already") as refused:
        resume_once(store, NonFiniteStepError("step 3 is not finite"), ONE_RANK)
    assert len(str(refused.value)) < MAX_REASON + 200
