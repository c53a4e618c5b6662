"""The engine: DeepSpeed's steps are plain Adam's at every ZeRO stage, and full tensors go in and out."""

from __future__ import annotations

import pytest
import torch
from quick_cases import FAMILIES, quick
from torch import Tensor
from training_synthetic import BATCH_ROWS, STEPS, Dataset, moments_of, small_config, small_dataset

from lexray.storage.stream import BatchStream, local_stream
from lexray.training.checkpoint.format import Checkpoint
from lexray.training.checkpoint.saved import to_state_dict
from lexray.training.config import OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.base import Dictionary
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.deepspeed_engine import DeepSpeedEngine
from lexray.training.engines.deepspeed_settings import BUCKET_SHARE
from lexray.training.loop.build import build_dictionary, sample_rows
from lexray.training.loop.loop import global_sums, training_steps
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")

LEARNED = [name for name, made in ARCHITECTURES.items() if made.Config.learns_by == "gradient"]
FEW = ("topk", "batch_topk", "relu", "relaxed_archetypal")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def stream_of(config: TrainingConfig) -> BatchStream:
    return local_stream(config.data.stream_spec("train"), batch_rows=config.data.batch_rows)


def prepared(config: TrainingConfig, stream: BatchStream) -> Dictionary:
    """An untrained dictionary with its starting values."""
    dictionary = build_dictionary(config, stream.manifest)
    if dictionary.needs_sample:
        dictionary.prepare(lambda: sample_rows(config, stream, torch.device("cpu")))
    return dictionary


def fresh(config: TrainingConfig, stream: BatchStream) -> tuple[Dictionary, DeepSpeedEngine]:
    dictionary = prepared(config, stream)
    return dictionary, DeepSpeedEngine(dictionary, config.optimizer, config.mesh)


@pytest.mark.parametrize("stage", quick(range(4), [0, 3]))
def test_the_learning_rate_of_every_step_is_the_schedule_s(dataset, stage):
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=stage), rows=20 * BATCH_ROWS)
    stream = stream_of(config)
    _, engine = fresh(config, stream)
    deepspeed_engine = engine._engine  # there is no other way to ask
    for record in training_steps(config, stream, engine, LOCAL_DATA, start=0):
        lr = config.optimizer.lr_at(record.step - 1, 20, width=40)
        assert record.lr == lr
        assert deepspeed_engine.get_lr() == [lr]
        assert [group["lr"] for group in deepspeed_engine.optimizer.param_groups] == [lr]


@pytest.mark.parametrize("stage", quick(range(4), [0, 3]))
def test_the_first_step_moves_weights_by_its_learning_rate(dataset, stage):
    """Adam's first step is the sign of the gradient times the learning rate."""
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=stage))
    stream = stream_of(config)
    _, engine = fresh(config, stream)
    before = engine.full_parameters()
    next(training_steps(config, stream, engine, LOCAL_DATA, start=0))
    moved = (engine.full_parameters()["b_dec"] - before["b_dec"]).abs()
    torch.testing.assert_close(
        moved, torch.full_like(moved, config.optimizer.lr_at(0, STEPS, width=40)), rtol=1e-3, atol=0
    )


PLAIN = [(name, stage, clip_norm) for name in LEARNED for stage in range(4) for clip_norm in (0.0, 0.3)]
OF_EACH = {("topk", stage, 0.3 * (stage % 2)) for stage in range(4)} | {(name, 2, 0.3) for name in FAMILIES}


@pytest.mark.parametrize(("name", "stage", "clip_norm"), quick(PLAIN, OF_EACH))
def test_deepspeed_s_steps_are_those_of_plain_adam(dataset, name, stage, clip_norm):
    optimizer = OptimizerConfig(lr=3e-3, eps=1e-4, clip_norm=clip_norm)
    config = small_config(dataset, name, optimizer=optimizer, mesh=MeshConfig(zero_stage=stage), rows=20 * BATCH_ROWS)
    stream = stream_of(config)
    losses, weights = plain_adam(config, stream)
    _, engine = fresh(config, stream)
    found = [r.batch.sums["loss"] for r in training_steps(config, stream, engine, LOCAL_DATA, start=0)]
    assert found == pytest.approx(losses, rel=1e-5)
    for key, tensor in engine.full_parameters().items():
        torch.testing.assert_close(tensor, weights[key], rtol=0, atol=1e-5)


def plain_adam(config: TrainingConfig, stream: BatchStream) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses and final parameters of the same dictionary in a loop that knows nothing of DeepSpeed."""
    dictionary = prepared(config, stream)
    o = config.optimizer
    adam = torch.optim.Adam(dictionary.parameters(), lr=0.0, betas=(o.beta1, o.beta2), eps=o.eps)
    losses = []
    for step in range(config.num_steps):
        raw = raw_rows(stream.batch(step), config.data)
        adam.param_groups[0]["lr"] = o.lr_at(step, config.num_steps, config.dictionary.width)
        adam.zero_grad()
        dictionary.at_step(step, config.num_steps)
        terms = dictionary.loss(raw.x_BD, BATCH_ROWS, raw.y_BO)
        terms.loss.backward()
        if o.clip_norm:
            torch.nn.utils.clip_grad_norm_(dictionary.parameters(), o.clip_norm)
        adam.step()
        with torch.no_grad():
            for name, project in dictionary.projections().items():
                dictionary.get_parameter(name).copy_(project(dictionary.get_parameter(name)))
        dictionary.after_step(global_sums(terms, BATCH_ROWS, LOCAL_DATA))
        losses.append(terms.loss.item())
    return losses, {key: p.detach() for key, p in dictionary.named_parameters()}


@pytest.mark.parametrize("stage", quick(range(4), [0, 3]))
def test_an_engine_gives_back_the_state_that_it_was_given(dataset, stage):
    config = small_config(dataset, "batch_topk", mesh=MeshConfig(zero_stage=stage))
    stream = stream_of(config)
    dictionary, engine = fresh(config, stream)
    steps = training_steps(config, stream, engine, LOCAL_DATA, start=0)
    for _ in range(7):
        next(steps)
    given = Checkpoint(7, to_state_dict(engine.full_parameters(), dictionary), moments_of(engine))
    other = build_dictionary(config, stream.manifest)
    other.load_state_dict(given.weights)
    restored = DeepSpeedEngine(other, config.optimizer, config.mesh)
    restored.restore(given)
    found = to_state_dict(restored.full_parameters(), other), moments_of(restored)
    for mine, theirs in zip(found, (given.weights, given.moments), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert all(moment.any() for moment in given.moments.values())


def test_an_engine_sets_aside_little_memory_to_reduce_gradients(dataset):
    """A share of the parameters, and not the 2 GB of DeepSpeed's default, however small the dictionary is."""
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=3))
    _, engine = fresh(config, stream_of(config))
    num_parameters = sum(p.numel() for p in engine.full_parameters().values())
    buckets = engine._engine.optimizer.ipg_buckets.values()
    assert [len(bucket.buffer) for bucket in buckets] == [round(num_parameters * BUCKET_SHARE)]


def test_an_untrained_engine_has_moments_of_zero(dataset):
    config = small_config(dataset, "topk")
    _, engine = fresh(config, stream_of(config))
    assert not any(moment.any() for moment in moments_of(engine).values())


# Rewriting from outside -------------------------------------------------------------------------------------------


def trained_for(config: TrainingConfig, steps: int) -> tuple[Dictionary, DeepSpeedEngine, BatchStream]:
    stream = stream_of(config)
    dictionary, engine = fresh(config, stream)
    records = training_steps(config, stream, engine, LOCAL_DATA, start=0)
    for _ in range(steps):
        next(records)
    return dictionary, engine, stream


@pytest.mark.parametrize("stage", quick(range(4), [0, 3]))
def test_a_rewritten_parameter_is_what_masters_and_the_next_forward_pass_have(dataset, stage):
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=stage))
    dictionary, engine, stream = trained_for(config, 3)
    before, moments = engine.full_parameters(), moments_of(engine)
    wanted = before["W_dec"].clone()
    wanted[5:9] = torch.arange(12.0)
    engine.assign({"W_dec": lambda whole: wanted.to(whole), "b_dec": lambda whole: whole + 1}, reset_moments=True)
    after = engine.full_parameters()
    assert torch.equal(after["W_dec"], wanted)
    assert torch.equal(after["b_dec"], before["b_dec"] + 1)
    assert torch.equal(after["W_enc"], before["W_enc"])
    found = moments_of(engine)
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not found[f"{moment}.W_dec"][5:9].any()
        assert not found[f"{moment}.b_dec"].any()
        assert torch.equal(found[f"{moment}.W_dec"][9:], moments[f"{moment}.W_dec"][9:])
        assert torch.equal(found[f"{moment}.W_enc"], moments[f"{moment}.W_enc"])
    raw = raw_rows(stream.batch(3), config.data)
    expected = build_dictionary(config, stream.manifest)
    expected.load_state_dict(to_state_dict(after, dictionary))
    loss = expected.loss(raw.x_BD, BATCH_ROWS).loss
    torch.testing.assert_close(engine.backward(raw, BATCH_ROWS).loss.detach(), loss.detach())


@pytest.mark.parametrize("stage", quick(range(4), [0, 3]))
def test_rewriting_with_the_same_values_changes_nothing(dataset, stage):
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=stage))
    _, engine, _ = trained_for(config, 3)
    before = {**engine.full_parameters(), **moments_of(engine)}
    engine.assign({"W_enc": lambda whole: whole.clone()}, reset_moments=True)
    after = {**engine.full_parameters(), **moments_of(engine)}
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("stage", quick(range(4), {0, 3}))
@pytest.mark.parametrize("name", quick(["archetypal", "relaxed_archetypal"]))
def test_after_each_step_mixtures_are_convex_and_relaxations_short(dataset, name, stage):
    options = {"relaxation": 0.05} if name == "relaxed_archetypal" else {}
    config = small_config(dataset, name, mesh=MeshConfig(zero_stage=stage), dictionary=options)
    stream = stream_of(config)
    _, engine = fresh(config, stream)
    steps = training_steps(config, stream, engine, LOCAL_DATA, start=0)
    longest = 0.0
    for _ in range(8):
        next(steps)
        full = engine.full_parameters()
        assert (full["mixture_FC"] >= 0).all()
        torch.testing.assert_close(full["mixture_FC"].sum(1), torch.ones(40))
        if name == "relaxed_archetypal":
            longest = max(longest, float(full["relaxation_FD"].norm(dim=1).max()))
            assert longest <= 0.05 + 1e-6
    assert (full["mixture_FC"] > 0).sum() > 40  # it has moved away from single candidates
    assert name == "archetypal" or longest > 0.005


@pytest.mark.parametrize(
    ("name", "stage"),
    quick([("topk", 0), ("topk", 1), ("topk", 3), ("crosscoder", 0)], {("topk", 1), ("crosscoder", 0)}),
)
def test_constrained_atoms_have_length_1_after_each_step_in_the_master_copy_too(dataset, name, stage):
    """Of a crosscoder the sum of its lengths at the sites; `unit` lets the master copy grow."""

    def lengths(decoder_norm: str) -> Tensor:
        options = {"decoder_norm": decoder_norm}
        config = small_config(dataset, name, mesh=MeshConfig(zero_stage=stage), dictionary=options)
        stream = stream_of(config)
        dictionary, engine = fresh(config, stream)
        steps = training_steps(config, stream, engine, LOCAL_DATA, start=0)
        for _ in range(8):
            next(steps)
        return dictionary.code_norms(engine.full_parameters()["W_dec"])

    constrained_F = lengths("constrained")
    torch.testing.assert_close(constrained_F, torch.ones_like(constrained_F))
    assert lengths("unit").max() > 1.0001
