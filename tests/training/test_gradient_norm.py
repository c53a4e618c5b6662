"""The gradient's norm is that of the whole gradient on every mesh; a step that is not finite changes no weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from mesh_ranks import CPU, prepared, stream_of
from quick_cases import quick
from torch import Tensor
from training_synthetic import BATCH_ROWS, Dataset, moments_of, small_config, small_dataset

from lexray.training.config import OptimizerConfig, TrainingConfig
from lexray.training.dictionaries.base import RawRows
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.engine import Engine
from lexray.training.loop.build import make_engine, place_in
from lexray.training.loop.loop import global_sums, training_steps
from lexray.training.loop.non_finite import NonFiniteStepError, check_loss
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.mesh import ONE_RANK, connect
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")


@dataclass(frozen=True, kw_only=True)
class Case:
    """How a dictionary is trained."""

    name: str = "topk"
    mesh: MeshConfig
    clip_norm: float = 1e-3

    def config(self, dataset: Dataset) -> TrainingConfig:
        optimizer = OptimizerConfig(lr=1e-3, clip_norm=self.clip_norm, lr_scale={"b_dec": 2.0})
        options = {"target_l0": 4, "decoder_norm": "free"}
        return small_config(dataset, self.name, dictionary=options, optimizer=optimizer, mesh=self.mesh)


class Observed(NamedTuple):
    """What one rank saw."""

    norm: float
    """Of the first step."""
    refusals: list[str]
    """Of a step with NaN among the rows of rank 0, and of one with NaN in the gradient of rank 0 alone."""
    changed: list[str]
    """Weights and moments that a refused step changed."""


def state_of(engine: Engine) -> dict[str, Tensor]:
    return {**{name: value.clone() for name, value in engine.full_parameters().items()}, **moments_of(engine)}


def observe(case: Case, dataset: Dataset, rank: int) -> Observed:
    """Take a first step; then try those that are not finite, each with an engine as it is after a step."""
    config, refusals, changed, norm = case.config(dataset), [], [], 0.0
    mesh = connect(place_in(config, rank), CPU)
    for fault in ("rows", "gradient"):
        stream = stream_of(config, mesh)
        engine = make_engine(prepared(config, stream, mesh), config, mesh)
        engine.backward(raw_rows(stream.batch(0), config.data), BATCH_ROWS)
        assert engine.step(1e-3)
        norm, before = float(engine.gradient_norm()), state_of(engine)  # type: ignore[arg-type]
        x_BD = raw_rows(stream.batch(1), config.data).x_BD.clone()
        if rank == 0 and fault == "rows":
            x_BD[:3] = torch.nan
        elif rank == 0:
            engine.dictionary.get_parameter("W_dec").register_hook(lambda gradient: gradient * torch.nan)
        sums = global_sums(engine.backward(RawRows(x_BD, x_BD), BATCH_ROWS), BATCH_ROWS, mesh.axes.rows)
        try:
            check_loss(2, sums.sums, engine.gradient_norm(), engine.dictionary.latents)
            if not engine.step(1e-3):
                refusals.append(f"gradient norm {float(engine.gradient_norm()):g}")  # type: ignore[arg-type]
        except NonFiniteStepError as error:
            refusals.append(str(error))
        after = state_of(engine)
        changed += [name for name, value in before.items() if not torch.equal(after[name], value)]
    return Observed(norm, refusals, changed)


def expected_norm(case: Case, dataset: Dataset) -> float:
    """Of the same step by plain torch in one process."""
    config = replace(case, mesh=MeshConfig()).config(dataset)
    stream = stream_of(config, ONE_RANK)
    dictionary = prepared(config, stream, ONE_RANK)
    raw = raw_rows(stream.batch(0), config.data)
    dictionary.at_step(0, 1)
    dictionary.loss(raw.x_BD, BATCH_ROWS, raw.y_BO).loss.backward()
    return float(torch.cat([p.grad.flatten() for p in dictionary.parameters() if p.grad is not None]).norm())


def check(case: Case, dataset: Dataset, found: Observed) -> None:
    assert found.norm == pytest.approx(expected_norm(case, dataset), rel=1e-4), case
    assert found.norm > 100 * case.clip_norm, "so that the norm after clipping is another one"
    of_rows, of_gradient = found.refusals
    assert of_rows.startswith("step 2 is not finite: loss nan, error nan"), case
    assert of_rows.endswith(f"the gradient norm was {found.norm:.3g} a step before"), case
    assert of_gradient in ("gradient norm nan", "gradient norm inf"), case
    assert found.changed == [], case


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


ALONE = [
    *(Case(mesh=MeshConfig(zero_stage=stage, micro_batches=parts)) for stage in range(4) for parts in (1, 3)),
    Case(mesh=MeshConfig(zero_stage=0), clip_norm=0.0),
    Case(mesh=MeshConfig(zero_stage=2), clip_norm=0.0),
    Case(mesh=MeshConfig(offload_optimizer=True)),
    Case(name="relu", mesh=MeshConfig()),
]


@pytest.mark.parametrize("case", quick(ALONE, [ALONE[0], ALONE[5], ALONE[8]]), ids=str)
def test_one_rank_has_the_norm_of_plain_torch_and_refuses_steps_that_are_not_finite(
    case: Case, dataset: Dataset
) -> None:
    check(case, dataset, observe(case, dataset, 0))


ON_TWO = [
    *(Case(mesh=MeshConfig(data=2, zero_stage=stage)) for stage in range(4)),
    *(Case(mesh=MeshConfig(feature=2, zero_stage=stage)) for stage in (0, 2, 3)),
    Case(mesh=MeshConfig(data=2, zero_stage=2, micro_batches=2)),
]


def _work(rank: int, dataset: Dataset, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save([observe(case, dataset, rank) for case in ON_TWO], f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_have_it_too_and_refuse_together(dataset: Dataset, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_work, args=(dataset, str(tmp_path)), nprocs=2)
    for rank in range(2):
        for case, found in zip(ON_TWO, torch.load(tmp_path / f"{rank}.pt", weights_only=False), strict=True):
            check(case, dataset, Observed(*found))


def test_every_step_s_record_has_the_norm_under_its_name(dataset: Dataset) -> None:
    config = ALONE[0].config(dataset)
    stream = stream_of(config, ONE_RANK)
    engine = make_engine(prepared(config, stream, ONE_RANK), config, ONE_RANK)
    record = next(training_steps(config, stream, engine, LOCAL_DATA, start=0))
    assert record.metrics()["train/grad_norm"] == pytest.approx(expected_norm(ALONE[0], dataset), rel=1e-4)


def test_a_dictionary_that_learns_by_statistics_has_none(dataset: Dataset) -> None:
    config = small_config(dataset, "kmeans")
    stream = stream_of(config, ONE_RANK)
    engine = make_engine(prepared(config, stream, ONE_RANK), config, ONE_RANK)
    record = next(training_steps(config, stream, engine, LOCAL_DATA, start=0))
    assert "train/grad_norm" not in record.metrics()
