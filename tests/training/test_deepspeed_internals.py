"""What the engine relies on in DeepSpeed without its promise; its compilers are in test_nothing_is_compiled."""

from __future__ import annotations

import pytest
import torch
from training_synthetic import Dataset, small_config, small_dataset

from lexray.storage.stream import local_stream
from lexray.training.config import OptimizerConfig
from lexray.training.engines.adam_states import ADAM_MOMENTS
from lexray.training.engines.deepspeed_engine import DeepSpeedEngine
from lexray.training.loop.build import build_dictionary
from lexray.training.loop.loop import training_steps
from lexray.training.mesh.axes import LOCAL_DATA
from lexray.training.mesh.settings import MeshConfig

pytestmark = pytest.mark.usefixtures("process_group")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return small_dataset(tmp_path_factory.mktemp("data"))


def stepped(dataset: Dataset, stage: int) -> DeepSpeedEngine:
    """An engine of two groups of parameters, whose learning rates differ, after one step."""
    optimizer = OptimizerConfig(lr_scale={"b_dec": 2.0})
    config = small_config(dataset, "topk", mesh=MeshConfig(zero_stage=stage), optimizer=optimizer)
    stream = local_stream(config.data.stream_spec("train"), batch_rows=config.data.batch_rows)
    dictionary = build_dictionary(config, stream.manifest)
    engine = DeepSpeedEngine(dictionary, config.optimizer, config.mesh)
    next(training_steps(config, stream, engine, LOCAL_DATA, start=0))
    return engine


@pytest.mark.parametrize("stage", [1, 2])
def test_deepspeed_looks_for_the_moments_of_every_group_when_it_is_made_to(dataset, stage):
    engine = stepped(dataset, stage)
    assert len(engine.live_groups()) == 2
    optimizer = engine._engine.optimizer
    assert optimizer._hp_optimizer_states_linked, "DeepSpeed has looked, and would not look again"
    engine._states.find()
    for name, parameter in engine.dictionary.named_parameters():
        for moment in ADAM_MOMENTS:
            assert engine._states.moment(parameter, moment).any(), (name, moment)


@pytest.mark.parametrize("is_enabled", [False, True])
def test_one_rank_makes_no_pass_to_add_up_gradients(dataset, monkeypatch, is_enabled):
    engine = stepped(dataset, 0)
    inner = engine._engine
    assert inner.enable_backward_allreduce is False
    inner.enable_backward_allreduce = is_enabled
    passes: list[int] = []
    monkeypatch.setattr(inner, "buffered_allreduce_fallback", lambda *_, **__: passes.append(1))
    inner.backward(sum(parameter.sum() for parameter in engine.dictionary.parameters()))
    assert bool(passes) is is_enabled, "DeepSpeed reads the flag in each backward pass"


@pytest.mark.parametrize("stage", [3])
def test_a_part_of_stage_3_is_written_where_deepspeed_reads_it(dataset, stage):
    engine = stepped(dataset, stage)
    parameter = engine.dictionary.get_parameter("b_dec")
    value = torch.arange(float(parameter.ds_numel)).reshape(parameter.ds_shape)
    engine._states.set_master(parameter, value)
    assert torch.equal(engine._states.master(parameter).cpu(), value)
