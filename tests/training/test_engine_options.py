"""What the engine can be asked for: precision, offloading, learning rates by parameter, batches in parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from quick_cases import quick
from torch import Tensor
from training_cases import LEARNED, Case, cut, gradients, loss_of, named, random_dictionary, random_rows, sites_of
from training_synthetic import BATCH_ROWS, Dataset, on_two_ranks, small_config, small_dataset

from lexray.storage.errors import UserError
from lexray.storage.stream import local_stream
from lexray.training.checkpoint.format import Checkpoint
from lexray.training.checkpoint.saved import to_state_dict
from lexray.training.config import OptimizerConfig, TrainingConfig
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.engines.deepspeed_engine import DeepSpeedEngine
from lexray.training.engines.deepspeed_settings import LiveGroup, check_groups
from lexray.training.engines.micro_batches import in_parts, parts_of
from lexray.training.loop.build import build_dictionary, sample_rows
from lexray.training.loop.loop import training_steps
from lexray.training.mesh.axes import LOCAL_DATA, Axes
from lexray.training.mesh.settings import MeshConfig
from lexray.training.objectives.forward import LossOutput

pytestmark = pytest.mark.usefixtures("process_group")

STAGES, STEPS = range(4), 20
NAMES = sorted({case.architecture for case in LEARNED})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def config_of(dataset: Dataset, name: str, *, mesh: MeshConfig | None = None, **optimizer: Any) -> TrainingConfig:
    """A large epsilon: gradients of rounding size make no full steps."""
    made = OptimizerConfig(**{"lr": 3e-3, "eps": 1e-4, **optimizer})
    return small_config(dataset, name, optimizer=made, mesh=mesh or MeshConfig(), rows=STEPS * BATCH_ROWS)


def made(config: TrainingConfig) -> tuple[DeepSpeedEngine, Any]:
    """An engine with a prepared dictionary, and the steps that train it."""
    stream = local_stream(config.data.stream_spec("train"), batch_rows=config.data.batch_rows)
    dictionary = build_dictionary(config, stream.manifest)
    if dictionary.needs_sample:
        dictionary.prepare(lambda: sample_rows(config, stream, torch.device("cpu")))
    engine = DeepSpeedEngine(dictionary, config.optimizer, config.mesh)
    return engine, training_steps(config, stream, engine, LOCAL_DATA, start=0)


def trained(config: TrainingConfig) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and final tensors."""
    engine, steps = made(config)
    losses = [record.batch.sums["loss"] for record in steps]
    return losses, to_state_dict(engine.full_parameters(), engine.dictionary)


def assert_trained_alike(config: TrainingConfig, other: TrainingConfig) -> None:
    (losses, state), (expected_losses, expected) = trained(config), trained(other)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-5, atol=1e-5)


# Batches in parts -------------------------------------------------------------------------------------------------


def learned_in_parts(
    made: Dictionary, rows: RawRows, num_parts: int, total: int
) -> tuple[LossOutput, dict[str, Tensor]]:
    """Terms and gradients of these rows, part by part."""
    parts, grads = parts_of(rows, num_parts), {name: torch.zeros_like(p) for name, p in made.named_parameters()}

    def look(part: int) -> None:
        with torch.no_grad():
            loss_of(made, parts[part], total)

    def learn(part: int) -> LossOutput:
        terms = loss_of(made, parts[part], total)
        for name, gradient in gradients(made, terms.loss).items():
            grads[name] += gradient
        return terms

    return in_parts(made, num_parts, look, learn), grads


def assert_same_terms(found: LossOutput, expected: LossOutput) -> None:
    torch.testing.assert_close(found.loss, expected.loss.detach())
    assert torch.equal(found.fired_F, expected.fired_F)
    for kind in ("sums", "observed"):
        mine, theirs = getattr(found, kind), getattr(expected, kind)
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(mine[name], value, check_dtype=False)


@pytest.mark.parametrize("case", **named(LEARNED))
def test_a_batch_in_parts_has_the_loss_and_gradient_of_the_whole(case: Case) -> None:
    """Latents are dead, so that terms over the whole batch's residuals are there too."""
    rows = random_rows(sites_of(case), 1)
    whole = random_dictionary(case)
    expected = loss_of(whole, rows)
    expected_grads = gradients(whole, expected.loss)
    for num_parts in (3, 5):
        in_pieces = random_dictionary(case)
        axes = (in_pieces.rows, in_pieces.pairs)
        terms, grads = learned_in_parts(in_pieces, rows, num_parts, len(rows.x_BD))
        assert_same_terms(terms, expected)
        for name, gradient in expected_grads.items():
            torch.testing.assert_close(grads[name], gradient, rtol=1e-9, atol=1e-10)
        assert (in_pieces.rows, in_pieces.pairs) == axes


@pytest.mark.parametrize("name", ["topk", "batch_topk", "batch_topk-free", "crosscoder_batch_topk"])
def test_ranks_with_unequal_rows_compute_them_in_parts(name: str) -> None:
    case = next(case for case in LEARNED if str(case) == name)
    rows = random_rows(sites_of(case), 1)
    expected = loss_of(random_dictionary(case), rows)

    def work(rank: int, axes: Axes) -> tuple[LossOutput, dict[str, Tensor]]:
        mine = cut(rows, 0, 17) if rank == 0 else cut(rows, 17)
        return learned_in_parts(random_dictionary(case, axes=axes), mine, 3, len(rows.x_BD))

    (first, first_grads), (second, second_grads) = on_two_ranks(work)
    torch.testing.assert_close(first.loss + second.loss, expected.loss.detach())
    assert torch.equal(first.fired_F + second.fired_F, expected.fired_F)
    whole = random_dictionary(case)
    for key, gradient in gradients(whole, loss_of(whole, rows).loss).items():
        torch.testing.assert_close(first_grads[key] + second_grads[key], gradient, rtol=1e-9, atol=1e-10)


def test_of_equal_activations_parts_keep_those_that_the_whole_keeps() -> None:
    """Every row three times: ties at the threshold are the rule."""
    case = next(case for case in LEARNED if str(case) == "batch_topk")
    few = random_rows(sites_of(case), 1, count=7)
    x_BD = few.x_BD.repeat(3, 1)
    rows = RawRows(x_BD, x_BD)
    for k in (4, 5):
        expected = loss_of(random_dictionary(case, target_l0=k), rows)
        terms, _ = learned_in_parts(random_dictionary(case, target_l0=k), rows, 4, 21)
        assert int(expected.fired_F.sum()) == 21 * k
        assert torch.equal(terms.fired_F, expected.fired_F)


PARTS = [(name, stage) for name in NAMES for stage in STAGES]


@pytest.mark.parametrize(("name", "stage"), quick(PARTS, {("batch_topk", 0), ("batch_topk", 2), ("topk", 3)}))
def test_micro_batches_train_what_whole_batches_do(dataset: Dataset, name: str, stage: int) -> None:
    whole = config_of(dataset, name, mesh=MeshConfig(zero_stage=stage))
    assert_trained_alike(replace(whole, mesh=MeshConfig(zero_stage=stage, micro_batches=3)), whole)


def test_no_more_rows_than_a_micro_batch_are_computed_at_once(dataset: Dataset, monkeypatch) -> None:
    engine, steps = made(config_of(dataset, "batch_topk", mesh=MeshConfig(micro_batches=4)))
    seen: list[int] = []
    loss = engine.dictionary.loss

    def counted(x_BD: Tensor, *args: Any) -> LossOutput:
        seen.append(len(x_BD))
        return loss(x_BD, *args)

    monkeypatch.setattr(engine.dictionary, "loss", counted)
    next(steps)
    assert set(seen) == {BATCH_ROWS // 4}


# Precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", **named(LEARNED))
def test_bf16_products_give_nearly_the_same_loss_in_fp32(case: Case) -> None:
    """Of a dictionary amid training: 2 % of the loss, and a gradient that goes the same way."""
    rows = random_rows(sites_of(case), 1, dtype=torch.float32)
    found, expected = random_dictionary(case).float(), random_dictionary(case).float()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        terms = loss_of(found, rows)
    reference = loss_of(expected, rows)
    assert float(terms.loss.detach()) == pytest.approx(float(reference.loss.detach()), rel=0.02)
    assert terms.loss.dtype == torch.float32
    assert all(value.dtype == torch.float32 for value in terms.sums.values())
    mine, theirs = (torch.cat([g.flatten() for g in gradients(d, t.loss).values()])
                    for d, t in ((found, terms), (expected, reference)))  # fmt: skip
    assert float(torch.nn.functional.cosine_similarity(mine, theirs, dim=0)) > 0.98


@pytest.mark.parametrize("name", quick(NAMES, ("batch_topk", "relu")))
def test_a_loss_curve_in_bf16_stays_near_that_in_fp32(dataset: Dataset, name: str) -> None:
    """5 % at every step, 2 % on average; masters and moments are fp32."""
    full, _ = trained(config_of(dataset, name))
    engine, steps = made(config_of(dataset, name, precision="bf16"))
    losses = [record.batch.sums["loss"] for record in steps]
    assert losses == pytest.approx(full, rel=0.05)
    assert sum(losses) == pytest.approx(sum(full), rel=0.02)
    assert name in ("mp", "omp") or losses != full, "products were rounded"
    assert {tensor.dtype for key, tensor in engine.state() if key.startswith("moments/")} == {torch.float32}
    assert {p.dtype for p in engine.dictionary.parameters()} == {torch.float32}


@pytest.mark.parametrize("stage", quick([1, 2, 3], {3}))
def test_bf16_is_the_same_at_every_stage(dataset: Dataset, stage: int) -> None:
    config = config_of(dataset, "batch_topk", precision="bf16")
    losses, _ = trained(replace(config, mesh=MeshConfig(zero_stage=stage)))
    assert losses == pytest.approx(trained(config)[0], rel=1e-4)


# Offloading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", quick([1, 2, 3], {3}))
def test_an_offloaded_optimizer_takes_the_same_steps(dataset: Dataset, stage: int) -> None:
    config = config_of(dataset, "batch_topk", mesh=MeshConfig(zero_stage=stage))
    assert_trained_alike(replace(config, mesh=MeshConfig(zero_stage=stage, offload_optimizer=True)), config)


@pytest.mark.parametrize("mesh", quick([
    *(MeshConfig(zero_stage=stage, offload_optimizer=True) for stage in (1, 2, 3)),
    *(MeshConfig(zero_stage=stage, micro_batches=2) for stage in STAGES),
], [MeshConfig(zero_stage=3, offload_optimizer=True), MeshConfig(zero_stage=3, micro_batches=2)]))  # fmt: skip
def test_an_engine_with_options_gives_back_the_state_that_it_was_given(dataset: Dataset, mesh: MeshConfig) -> None:
    config = config_of(dataset, "topk", mesh=mesh, lr_scale={"b_dec": 2.0})
    engine, steps = made(config)
    for _ in range(5):
        next(steps)
    given = _state_of(engine)
    dictionary = build_dictionary(config, dataset.manifest)
    dictionary.load_state_dict(given.weights)
    restored = DeepSpeedEngine(dictionary, config.optimizer, config.mesh)
    restored.restore(given)
    found = _state_of(restored)
    for mine, theirs in ((found.weights, given.weights), (found.moments, given.moments)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def _state_of(engine: DeepSpeedEngine) -> Checkpoint:
    state = {key: tensor.detach().clone() for key, tensor in engine.state()}
    weights, moments = (
        {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        for prefix in ("weights/", "moments/")
    )
    return Checkpoint(5, weights, moments)


def test_offloading_without_sharding_is_refused() -> None:
    with pytest.raises(UserError, match="offload_optimizer: not possible with zero_stage 0"):
        MeshConfig(zero_stage=0, offload_optimizer=True)
    assert MeshConfig(offload_optimizer=True).stage == 1


# Learning rates by parameter --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "offload"),
    quick([*((stage, False) for stage in STAGES), (1, True), (2, True), (3, True)], {(0, False), (3, True)}),
)
def test_each_parameter_moves_by_its_own_learning_rate(dataset: Dataset, stage: int, offload: bool) -> None:
    """Adam's first step is the sign of the gradient times the learning rate."""
    scales = {"b_dec": 2.0, "b_enc": 0.1, "W_dec": 0.0}
    mesh = MeshConfig(zero_stage=stage, offload_optimizer=offload)
    config = config_of(dataset, "topk", mesh=mesh, lr_scale=scales, eps=1e-12, clip_norm=0.0)
    engine, steps = made(config)
    before = engine.full_parameters()
    lr = next(steps).lr
    moved = {name: (after - before[name]).abs() for name, after in engine.full_parameters().items()}
    for name in ("b_dec", "b_enc", "W_enc"):
        at = moved[name][moved[name] > 0]
        assert len(at)
        torch.testing.assert_close(at, torch.full_like(at, lr * scales.get(name, 1.0)), rtol=1e-2, atol=1e-7)
    assert not moved["W_dec"].any()
    names = [("W_enc",), ("b_enc",), ("W_dec",), ("b_dec",)]
    assert engine.live_groups() == [LiveGroup(n, lr * scales.get(n[0], 1.0)) for n in names]


def test_an_optimizer_with_other_groups_than_asked_for_is_refused() -> None:
    wanted = [LiveGroup(("W_enc", "W_dec"), 1e-3), LiveGroup(("b_dec",), 2e-3)]
    check_groups(list(wanted), wanted)
    for live in (wanted[:1], wanted[::-1], [wanted[0], LiveGroup(("b_dec",), 1e-3)]):
        with pytest.raises(RuntimeError, match="asked for were"):
            check_groups(live, wanted)


def test_a_name_that_is_no_parameter_is_refused_in_one_line(dataset: Dataset) -> None:
    with pytest.raises(UserError, match=r"lr_scale\.threshold: topk has no such parameter; it has W_enc, b_enc, "):
        made(config_of(dataset, "topk", lr_scale={"threshold": 0.1}))
