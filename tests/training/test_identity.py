"""Identities of trials: those of earlier versions hold, and a new option with its default changes none."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
from training_cases import CASES, Case

from lexray.storage.errors import UserError
from lexray.training.codes import CODES
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, RowsConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config, recorded_config
from lexray.training.identity.hash import frozen_defaults, identity_hash
from lexray.training.identity.versions import (
    BEFORE_VERSIONS,
    NEWEST,
    changed_dictionary_defaults,
    changed_training_defaults,
)
from lexray.training.mesh.settings import MeshConfig

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("trial_ids.json").read_text())
"""Ids as lexray made them before codes had options of their own."""

NOT_HASHED = {
    "data": {"url", "storage", "dataset_id", "inputs"},
    "every": {"log", "checkpoint", "checkpoint_s", "keep"},
}
BEFORE = OptimizerConfig(**changed_training_defaults(BEFORE_VERSIONS, "optimizer"))
OLD_DATA = changed_training_defaults(BEFORE_VERSIONS, "data")
DATA = DataConfig(url="s3://a/b", dataset_id="0123456789abcdef", inputs=("x",), batch_rows=4096, **OLD_DATA)


def trial_of(case: Case) -> TrainingConfig:
    options = {"architecture": case.architecture, "width": 64, "target_l0": 8, **case.options}
    if case.architecture == "kmeans":
        options["target_l0"] = 1
    return TrainingConfig(
        dictionary=dictionary_config(options, BEFORE_VERSIONS), data=DATA, rows=10**6, seed=1, optimizer=BEFORE
    )


def test_ids_of_earlier_versions_hold():
    known = [case for case in CASES if str(case) in GOLDEN]
    assert len(known) == len(GOLDEN) - 1
    assert {str(case): trial_of(case).trial for case in known} == {k: v for k, v in GOLDEN.items() if k != "settings"}


def test_ids_of_earlier_versions_hold_with_settings_of_the_training():
    config = TrainingConfig(
        dictionary=dictionary_config({"architecture": "topk", "width": 64, "target_l0": 8}, BEFORE_VERSIONS),
        data=DataConfig(
            url="u", dataset_id="0123456789abcdef", inputs=("x", "y"), outputs=("z",), held_out=0.1, seed=3,
            max_norm_ratio=None, **OLD_DATA,
        ),
        rows=10**6,
        optimizer=replace(BEFORE, lr=3e-4, warmup=0.1, lr_scale={"b_dec": 2.0}),
        every=EveryConfig(evaluate=50),
        mesh=MeshConfig(data=2),
    )  # fmt: skip
    assert config.trial == GOLDEN["settings"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_option_of_an_architecture_stands_in_the_frozen_table(architecture):
    """A new option belongs under a version of its own, with the default that it is introduced with."""
    made, table = ARCHITECTURES[architecture], frozen_defaults()
    parts = [version.get("dictionary", {}) for version in table.values()]
    frozen = {name for part in parts for name in {**part.get("all", {}), **part.get(architecture, {})}}
    for kind in made.kinds:
        of_code = {name for version in table.values() for name in version.get("codes", {}).get(kind, {})}
        assert made.option_names(kind) - {"width", "target_l0"} <= frozen | of_code
    assert made.kinds or made.option_names() - {"width", "target_l0"} <= frozen


@pytest.mark.parametrize(
    ("block", "made"), [("data", DataConfig), ("optimizer", OptimizerConfig), ("every", EveryConfig)]
)
def test_every_setting_of_a_training_stands_in_the_frozen_table(block, made):
    frozen = {name for version in frozen_defaults().values() for name in version.get("training", {}).get(block, {})}
    assert {f.name for f in fields(made)} - NOT_HASHED.get(block, set()) <= frozen


def test_a_new_option_changes_no_id_with_its_default_and_each_id_with_another(monkeypatch):
    content = trial_of(CASES[0]).to_dict()
    before = identity_hash(content)
    table = {**frozen_defaults(), "99": {"codes": {"relu": {"new": 3}}, "training": {"optimizer": {"newer": None}}}}
    monkeypatch.setattr("lexray.training.identity.hash.frozen_defaults", lambda: table)

    def with_values(new: object, newer: object) -> str:
        optimizer = {**content["optimizer"], "newer": newer}
        return identity_hash({**content, "dictionary": {**content["dictionary"], "new": new}, "optimizer": optimizer})

    assert with_values(3, None) == before
    assert len({before, with_values(4, None), with_values(3, 1), with_values(4, 1)}) == 4


def test_a_changed_default_changes_the_id():
    content = trial_of(CASES[0]).to_dict()
    changed = {**content, "dictionary": {**content["dictionary"], "dead_after_rows": 5}}
    assert identity_hash(changed) != identity_hash(content)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_classes_have_the_newest_defaults(architecture):
    """What the table says of the newest version is what an option has that nobody gives."""
    made = ARCHITECTURES[architecture]
    for kind in made.kinds or [None]:
        options = {"architecture": architecture, "width": 64, "target_l0": 1, **({"code": kind} if kind else {})}
        newest = dictionary_config(options).to_dict()
        for name, before in changed_dictionary_defaults(BEFORE_VERSIONS, architecture, kind).items():
            assert dictionary_config(options, BEFORE_VERSIONS).to_dict()[name] == before
            assert newest[name] != before
        assert changed_dictionary_defaults(NEWEST, architecture, kind) == {}
    for block, made in (("optimizer", OptimizerConfig()), ("data", RowsConfig())):
        for name, before in changed_training_defaults(BEFORE_VERSIONS, block).items():
            assert getattr(made, name) != before


def test_an_architecture_from_outside_has_the_defaults_of_every_architecture():
    before = changed_dictionary_defaults(BEFORE_VERSIONS, "from_outside", "of_its_own")
    assert before == {"dead_after_rows": 10_000_000}


def test_an_option_that_is_given_wins_over_the_default_of_its_version():
    options = {"architecture": "topk", "width": 64, "target_l0": 8, "dead_after_rows": 5}
    assert dictionary_config(options, BEFORE_VERSIONS).dead_after_rows == 5


def test_options_of_other_codes_that_an_earlier_version_wrote_are_left_out():
    """It wrote all options of all codes of a transcoder, of which one code's did something."""
    options = {"architecture": "transcoder", "width": 64, "target_l0": 8, "code": "topk", "k_aux": 5, "bandwidth": 0.03}
    assert recorded_config(options).to_dict()["k_aux"] == 5
    assert "bandwidth" not in recorded_config(options).to_dict()
    with pytest.raises(UserError, match="bandwidth: transcoder has no such option with code topk, only with jumprelu"):
        dictionary_config(options)


def test_a_code_may_be_written_as_a_mapping():
    nested = {"architecture": "transcoder", "width": 64, "target_l0": 8, "code": {"kind": "jumprelu", "bandwidth": 0.1}}
    flat = {"architecture": "transcoder", "width": 64, "target_l0": 8, "code": "jumprelu", "bandwidth": 0.1}
    assert dictionary_config(nested) == dictionary_config(flat)
    with pytest.raises(UserError, match=r"code\.bandwidth: stands there and as bandwidth"):
        dictionary_config({**nested, "bandwidth": 0.2})
    with pytest.raises(UserError, match="code: transcoder has no code 'gated'"):
        dictionary_config({**nested, "code": {"kind": "gated"}})


def test_every_code_is_known_by_its_kind():
    assert all(kind == code.kind == code.Config(kind=kind).kind for kind, code in CODES.items())
