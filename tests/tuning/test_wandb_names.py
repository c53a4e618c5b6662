"""How many names W&B sees, and over what their curves are drawn."""

from __future__ import annotations

from pathlib import Path

import torch
from training_cases import CASES, random_dictionary, random_rows, sites_of
from training_synthetic import small_config, small_dataset
from wandb_offline import axes_of

from lexray.storage.stream import local_stream
from lexray.training.loop.data_traffic import DataTraffic
from lexray.training.loop.loop import StepRecord
from lexray.training.measures.metrics import evaluate
from lexray.training.objectives.forward import BatchSums
from lexray.tuning.views.wandb_ids import RunIds
from lexray.tuning.views.wandb_runs import WORKERS_SHOWN, Described, WandbRuns, shown

MOST_NAMES = 200
WORKERS = 1024


class ManyRanks:
    """Where a mesh of `WORKERS` gathers; each has the same to say."""

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.expand(WORKERS, -1)


def logged_of_every_architecture() -> set[str]:
    names: set[str] = set()
    for case in CASES:
        dictionary, rows = random_dictionary(case), random_rows(sites_of(case), seed=1)
        names |= {f"{part}/{name}" for name in evaluate(dictionary, [rows]) for part in ("eval", "test")}
        if case.cls.Config.learns_by == "gradient":
            terms = dictionary.loss(rows.x_BD, len(rows.x_BD), rows.y_BO)
            sums = {name: float(value) for name, value in terms.sums.items()}
            names |= set(
                StepRecord(1, BatchSums(len(rows.x_BD), sums, terms.fired_F, terms.observed), 0.1, 1.0).metrics()
            )
    return names


def test_all_architectures_on_a_thousand_workers_have_fewer_than_200_names(tmp_path: Path) -> None:
    config = small_config(small_dataset(tmp_path), "topk")
    train, test = (
        local_stream(config.data.stream_spec(part), batch_rows=config.data.batch_rows) for part in ("train", "test")
    )
    traffic = DataTraffic(train=train, evaluated=[test], ranks=ManyRanks()).since_last(1.0)
    names = {"step", "rows", "perf/rows_per_s", "perf/mesh_mb_per_step", *traffic, *logged_of_every_architecture()}
    assert len(names) > WORKERS
    told = shown(dict.fromkeys(names, 0.0))
    assert 20 + WORKERS_SHOWN < len(told) < MOST_NAMES
    assert names - set(told) == {f"data/wait_worker{rank}" for rank in range(WORKERS_SHOWN, WORKERS)}


def test_curves_are_drawn_over_rows(tmp_path: Path) -> None:
    runs = WandbRuns(ids=lambda: RunIds("x"), project="p", group="g", folder=str(tmp_path), mode="offline")
    runs.start(Described("a", "a", {}, 1))
    runs.log("a", [{"step": 10, "rows": 1280, "train/fvu": 0.5}])
    runs.finish_all()
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    axes = axes_of(run)
    assert axes["*"] == "rows"
    assert {axis for name, axis in axes.items() if name != "rows"} == {"rows"}
