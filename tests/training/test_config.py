"""A training's configuration: what it is identified by, that it survives JSON, and what it refuses."""

import json
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import training_cases
from hypothesis import given
from hypothesis import strategies as st
from training_cases import config_of

from lexray.storage.errors import UserError
from lexray.storage.store import StorageSettings
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config
from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.learned import LearnedConfig
from lexray.training.mesh.settings import MeshConfig

DEFAULTS = {case.architecture: config_of(case) for case in training_cases.DEFAULTS}
"""A configuration of each architecture."""


def with_another(architecture: str, name: str) -> tuple[DictionaryConfig, DictionaryConfig]:
    """Two configurations that differ in one option; with free norms where the option needs them."""
    default = DEFAULTS[architecture].to_dict()
    for companions in ({}, {"decoder_norm": "free"}):
        if companions.keys() <= default.keys():
            for value in candidates(architecture, name):
                try:
                    base = dictionary_config(default | companions)
                    changed = with_option(base, name, value)
                except UserError:
                    continue
                if changed.to_dict()[name] != base.to_dict()[name]:
                    return base, changed
    raise AssertionError(f"no other value of {architecture}.{name} was found: add one to `candidates`")


def candidates(architecture: str, name: str) -> list[Any]:
    """Values that an option may take, judged by its type and its default."""
    if name == "code":
        return ARCHITECTURES[architecture].kinds
    made = DEFAULTS[architecture]
    default, hints = made.to_dict()[name], get_type_hints(type(made))
    kind = (hints | get_type_hints(type(made.code)) if isinstance(made, LearnedConfig) else hints)[name]
    named = [value for part in (kind, *get_args(kind)) for value in get_args(part) if get_origin(part) is Literal]
    if named:
        return named
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, dict):
        return [{"auxk": 0.5}]
    if isinstance(default, tuple):
        return [(0.5, 1.0)]
    numbers = [default + 1, default * 2, default / 2, default - 1] if default else [10, 1, 0.5]
    return [int(number) if "int" in str(kind) else float(number) for number in numbers]


def with_option(made: DictionaryConfig, name: str, value: Any) -> DictionaryConfig:
    """The configuration with another value of one option; another code comes with its own options."""
    options = made.to_dict()
    if name == "code":
        options = {key: option for key, option in options.items() if hasattr(made, key)}
    return dictionary_config(options | {name: value})


OPTIONS = [(name, option) for name in DEFAULTS for option in sorted(ARCHITECTURES[name].option_names())]
ONLY = {
    ("kmeans", "target_l0"): "target_l0",
    ("omp", "decoder_init_norm"): "decoder_init_norm",
    ("archetypal", "resample_every_rows"): "no row can restart them",
    ("relaxed_archetypal", "resample_every_rows"): "no row can restart them",
    ("transcoder", "encoder_init"): "nothing can be tied",
    ("skip_transcoder", "encoder_init"): "nothing can be tied",
    ("group_max", "k_start"): "k_start",
    ("group_max", "multi_topk"): "multi_topk: group_max has one latent",
    **{(name, "terms"): "has this term already" for name, made in DEFAULTS.items() if "k_aux" in made.to_dict()},
}
"""Options with one possible value, and why."""


def config(architecture: str = "topk", **options) -> TrainingConfig:
    return TrainingConfig(
        dictionary=dictionary_config({"architecture": architecture, "width": 64, "target_l0": 8, **options}),
        data=DataConfig(url="file:///data", dataset_id="abc", inputs=("layer3",)),
        rows=100_000,
    )


def changed(base: TrainingConfig, block: str, name: str, value) -> TrainingConfig:
    """`base` with one field of one block, or of itself when `block` is empty, replaced."""
    if not block:
        return replace(base, **{name: value})
    return replace(base, **{block: replace(getattr(base, block), **{name: value})})


DECIDING = {
    "": {"rows": 100_001, "seed": 1},
    "data": {
        "dataset_id": "abd", "inputs": ("layer4",), "outputs": ("layer4",), "batch_rows": 2048,
        "seed": 1, "held_out": 0.1, "held_out_of": "documents",
        "drop_special": False, "max_norm_ratio": None, "lanes": 8, "window_bytes": 2**20,
    },
    "optimizer": {
        "lr": 1e-3, "beta1": 0.5, "beta2": 0.9, "eps": 1e-5, "clip_norm": 0.5, "warmup": 0.1, "decay": 0.1,
        "lr_scale": {"b_dec": 2.0}, "precision": "bf16", "lr_rule": "width",
    },
    "every": {"evaluate": 10, "eval_rows": 10},
}  # fmt: skip
NOT_DECIDING = {
    "data": {"url": "s3://elsewhere", "storage": StorageSettings(region="eu-west-1")},
    "mesh": {
        "data": 4,
        "feature": 2,
        "zero_stage": 2,
        "offload_optimizer": True,
        "micro_batches": 2,
        "check_rows": True,
    },
    "every": {"log": 7, "checkpoint": 7, "checkpoint_s": None, "keep": 7},
}
CASES = [(block, name, value) for block, named in DECIDING.items() for name, value in named.items()]
OTHER_CASES = [(block, name, value) for block, named in NOT_DECIDING.items() for name, value in named.items()]


@pytest.mark.parametrize(("block", "name", "value"), CASES)
def test_what_decides_the_result_changes_the_identity(block, name, value):
    assert changed(config(), block, name, value).identity_hash() != config().identity_hash()


@pytest.mark.parametrize(("block", "name", "value"), OTHER_CASES)
def test_what_does_not_decide_the_result_leaves_the_identity_alone(block, name, value):
    assert changed(config(), block, name, value).identity_hash() == config().identity_hash()


def test_every_field_either_decides_the_result_or_does_not():
    """A new field must be put in one of the two tables above."""
    listed = {(block, name) for block, name, _ in [*CASES, *OTHER_CASES]}
    base = config()
    blocks = {block: getattr(base, block) for block in ("data", "optimizer", "mesh", "every")}
    known = {(block, f.name) for block, value in blocks.items() for f in fields(value)}
    assert listed == known | {("", f.name) for f in fields(base) if f.name not in (*blocks, "dictionary")}


@pytest.mark.parametrize(("architecture", "option"), [pair for pair in OPTIONS if pair not in ONLY], ids=str)
def test_every_option_of_an_architecture_changes_the_identity(architecture, option):
    made, other = (replace(config(), dictionary=d) for d in with_another(architecture, option))
    assert made.identity_hash() != other.identity_hash()


@pytest.mark.parametrize(("architecture", "option"), ONLY, ids=str)
def test_an_option_with_one_possible_value_refuses_others_and_says_why(architecture, option):
    made = DEFAULTS[architecture]
    others = [value for value in candidates(architecture, option) if value != made.to_dict()[option]]
    assert others
    for value in others:
        with pytest.raises(UserError, match=ONLY[architecture, option]):
            with_option(made, option, value)


def test_each_architecture_has_an_identity_of_its_own():
    hashes = {replace(config(), dictionary=made).identity_hash() for made in DEFAULTS.values()}
    assert len(hashes) == len(DEFAULTS) == len(ARCHITECTURES)


def test_the_trial_id_tells_people_architecture_width_and_target():
    assert config().trial == f"topk-w64-l8-{config().identity_hash()}"


@st.composite
def dictionaries(draw) -> DictionaryConfig:
    """Any architecture with any of its options at another value."""
    name = draw(st.sampled_from(sorted(DEFAULTS)))
    options = [option for made, option in OPTIONS if made == name and (name, option) not in ONLY]
    return with_another(name, draw(st.sampled_from(options)))[1]


def shares() -> st.SearchStrategy[float]:
    return st.just(0.0) | st.floats(1e-6, 0.5)


def configs() -> st.SearchStrategy[TrainingConfig]:
    return st.builds(
        TrainingConfig,
        dictionary=dictionaries(),
        data=st.builds(
            DataConfig,
            url=st.just("s3://bucket/data"),
            dataset_id=st.text(max_size=16),
            inputs=st.lists(st.text(max_size=16), min_size=1, max_size=3).map(tuple),
            outputs=st.just(()) | st.text(max_size=16).map(lambda name: (name,)),
            storage=st.builds(StorageSettings, region=st.none() | st.just("eu"), anonymous=st.booleans()),
            held_out=st.floats(1e-6, 0.9),
            seed=st.integers(0, 2**63 - 1),
        ),
        rows=st.integers(1, 2**50),
        optimizer=st.builds(OptimizerConfig, lr=st.just("auto") | st.floats(1e-6, 1), warmup=shares()),
        seed=st.integers(0, 2**31),
        mesh=st.builds(MeshConfig, data=st.integers(1, 64), zero_stage=st.sampled_from(["auto", 0, 1, 2, 3])),
        every=st.builds(EveryConfig, log=st.integers(1, 100), evaluate=st.integers(1, 10**6)),
    )


@given(configs())
def test_a_configuration_survives_json(given_config):
    again = TrainingConfig.from_dict(json.loads(json.dumps(given_config.to_dict())))
    assert again == given_config
    assert again == TrainingConfig.from_dict(given_config.to_dict())
    assert again.trial == given_config.trial


def test_equal_configurations_have_equal_identities_however_their_numbers_are_written():
    whole = dictionary_config({"architecture": "topk", "width": 64, "target_l0": 8, "aux_weight": 0})
    assert whole == dictionary_config({"architecture": "topk", "width": 64, "target_l0": 8.0, "aux_weight": 0.0})
    base = replace(config(), dictionary=whole)
    assert TrainingConfig.from_dict(base.to_dict()).trial == base.trial


# The learning rate ------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_stays_and_falls_to_zero_linearly():
    optimizer = OptimizerConfig(lr=1.0, warmup=0.1, decay=0.2)
    values = [optimizer.lr_at(step, 100, width=64) for step in range(100)]
    assert values[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert values[10:81] == [1.0] * 71
    assert values[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])


@given(shares(), shares(), st.integers(1, 300))
def test_no_step_trains_with_a_learning_rate_of_zero_or_above_the_peak(warmup, decay, num_steps):
    optimizer = OptimizerConfig(lr=0.5, warmup=warmup, decay=decay)
    assert all(0 < optimizer.lr_at(step, num_steps, width=64) <= 0.5 for step in range(num_steps))


def test_without_warmup_and_decay_the_learning_rate_is_constant():
    optimizer = OptimizerConfig(lr=0.5, warmup=0, decay=0)
    assert {optimizer.lr_at(step, 50, width=64) for step in range(50)} == {0.5}


@pytest.mark.parametrize(("width", "lr"), [(2**14, 2e-4), (2**16, 1e-4), (2**12, 4e-4)])
def test_the_automatic_learning_rate_falls_with_the_root_of_the_width(width, lr):
    for num_steps in (36_000, 10**6):
        assert OptimizerConfig().peak_lr(width, num_steps) == pytest.approx(lr)
    assert OptimizerConfig(lr_rule="width").peak_lr(width, 100) == pytest.approx(lr)
    assert OptimizerConfig().peak_lr(width, 4000) == pytest.approx(3 * lr)
    assert OptimizerConfig().peak_lr(width, 10) == pytest.approx(6 * lr)
    assert OptimizerConfig(lr=0.3).peak_lr(width, 100) == 0.3


def test_rows_are_rounded_up_to_whole_batches():
    assert replace(config(), rows=4096 * 10).num_steps == 10
    assert replace(config(), rows=4096 * 10 + 1).num_steps == 11


@pytest.mark.parametrize(("workers", "stage", "expected"), [(1, "auto", 0), (2, "auto", 1), (1, 2, 2), (4, 0, 0)])
def test_the_automatic_zero_stage_is_0_for_one_worker_and_1_for_more(workers, stage, expected):
    assert MeshConfig(data=workers, zero_stage=stage).stage == expected


# Refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (lambda: OptimizerConfig(lr=0.0), "lr: 0.0"),
        (lambda: OptimizerConfig(lr=-1e-3), "lr: -0.001"),
        (lambda: OptimizerConfig(lr=float("nan")), "lr: nan"),
        (lambda: OptimizerConfig(warmup=0.6, decay=0.6), "warmup: 0.6 and decay: 0.6 must not add up to more than 1"),
        (lambda: OptimizerConfig(warmup=-0.1, decay=0.5), "warmup: -0.1 must be at least 0 and at most 1"),
        (lambda: OptimizerConfig(beta1=1.0), "beta1: 1.0"),
        (lambda: OptimizerConfig(beta2=-0.1), "beta2: -0.1"),
        (lambda: OptimizerConfig(eps=-1e-8), "eps: -1e-08"),
        (lambda: OptimizerConfig(clip_norm=-1.0), "clip_norm: -1.0"),
        (lambda: MeshConfig(data=0), "data: 0 must be at least 1"),
        (lambda: MeshConfig(feature=0), "feature: 0 must be at least 1"),
        (lambda: MeshConfig(zero_stage=4), "zero_stage: 4 is not one of auto, 0, 1, 2, 3"),
        (lambda: EveryConfig(log=0), "log: 0"),
        (lambda: EveryConfig(evaluate=0), "evaluate: 0"),
        (lambda: EveryConfig(checkpoint=-1), "checkpoint: -1"),
        (lambda: EveryConfig(eval_rows=0), "eval_rows: 0"),
        (lambda: EveryConfig(checkpoint_s=0), "checkpoint_s: 0"),
        (lambda: EveryConfig(checkpoint_s=float("nan")), "checkpoint_s: nan"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_line_that_names_it(made, field):
    with pytest.raises(UserError) as refusal:
        made()
    assert str(refusal.value).startswith(field)
    assert "\n" not in str(refusal.value)
