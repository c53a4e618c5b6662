"""Hooks of exported dictionaries: TransformerLens' name where it has the same vectors, nothing anywhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from export_cases import saved, trained
from harvest_cases import harvest_file, tiny_model

from lexray.storage.harvest.harvest import harvest
from lexray.training.export import export_dictionary
from lexray.training.export.hook_names import hook_of
from lexray.training.export.origin import origin_of

LAYERS = 12


def hook_name(site: dict[str, Any], family: str | None = "gpt2", num_layers: int | None = LAYERS) -> str | None:
    hook = hook_of(site, num_layers=num_layers, family=family)
    return None if hook is None else hook.name


@pytest.mark.parametrize(
    ("site", "name"),
    [
        ({"hidden_state": 0}, "blocks.0.hook_resid_pre"),
        ({"hidden_state": 1}, "blocks.0.hook_resid_post"),
        ({"hidden_state": 11}, "blocks.10.hook_resid_post"),
        ({"hidden_state": 12}, None),
        ({"hidden_state": 13}, None),
        ({"layer": 0}, "blocks.0.hook_resid_post"),
        ({"layer": 11}, "blocks.11.hook_resid_post"),
        ({"layer": 3, "read": "residual_out"}, "blocks.3.hook_resid_post"),
        ({"layer": 3, "read": "residual_in"}, "blocks.3.hook_resid_pre"),
        ({"layer": 3, "read": "mlp_out"}, "blocks.3.hook_mlp_out"),
        ({"layer": 3, "read": "attention_out"}, "blocks.3.hook_attn_out"),
        ({"layer": 3, "read": "mlp_in"}, "blocks.3.ln2.hook_normalized"),
        ({"module": "h.3.mlp"}, None),
        ({"module": "h.3", "read": "input"}, None),
        ({}, None),
        ({"layer": "3"}, None),
        ({"layer": True}, None),
        ({"layer": -1}, None),
        ({"hidden_state": -1}, None),
        ({"layer": 3, "read": "sideways"}, None),
    ],
)
def test_every_place_of_a_harvest_file_has_its_hook_or_none(site, name):
    assert hook_name(site) == name


@pytest.mark.parametrize("family", ["bert", "roberta", "vit", "opt", "dinov2", "", "somebody_elses"])
@pytest.mark.parametrize("site", [{"hidden_state": 1}, {"layer": 1}, {"layer": 1, "read": "mlp_out"}], ids=str)
def test_families_whose_layers_do_not_hand_on_the_residual_stream_have_no_hook(family, site):
    assert hook_name(site, family) is None


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2"])
def test_parts_that_are_normalised_before_they_are_added_have_no_hook(family):
    assert hook_name({"layer": 1}, family) == "blocks.1.hook_resid_post"
    assert hook_name({"layer": 1, "read": "mlp_out"}, family) is None
    assert hook_name({"layer": 1, "read": "attention_out"}, family) is None


@pytest.mark.parametrize("family", ["gptj", "phi"])
def test_an_mlp_without_a_norm_of_its_own_has_no_hook_in_front(family):
    assert hook_name({"layer": 1, "read": "mlp_in"}, family) is None


def test_without_a_family_only_hidden_states_are_named():
    assert hook_name({"hidden_state": 2}, None) == "blocks.1.hook_resid_post"
    assert hook_name({"layer": 2}, None) is None
    assert hook_name({"hidden_state": 2}, "gpt2", None) is None


def about(read: dict[str, Any], written: dict[str, Any] | None = None, **provenance: Any) -> dict[str, Any]:
    sites = {"in": read} | ({} if written is None else {"out": written})
    found = {
        "settings": {"model": "gpt2", "sites": sites},
        "model": {"num_layers": LAYERS},
        "run": {"model_types": {"model": "gpt2"}},
    }
    return {
        "sites": {"inputs": [{"name": "in"}], "outputs": [{"name": "in" if written is None else "out"}]},
        "data": {"provenance": found | provenance},
    }


def metadata(path: Path, content: dict[str, Any], case: str = "topk") -> dict[str, Any]:
    export_dictionary(saved(path / "dictionary", trained(case), **content), "sae-lens", str(path / "out"))
    found: dict[str, Any] = json.loads((path / "out/cfg.json").read_text())["metadata"]
    return found


def test_a_place_without_a_hook_leaves_the_name_out_rather_than_the_sites_own(tmp_path):
    """Readers take the layer from whatever number the name has."""
    found = metadata(tmp_path, about({"hidden_state": LAYERS}))
    assert not {"hook_name", "hook_name_out"} & found.keys()
    assert found["model_name"] == "gpt2"


def test_a_transcoder_has_the_hooks_of_both_its_sites(tmp_path):
    content = about({"layer": 3, "read": "mlp_in"}, {"layer": 3, "read": "mlp_out"})
    found = metadata(tmp_path, content, "transcoder-relu")
    assert (found["hook_name"], found["hook_name_out"]) == ("blocks.3.ln2.hook_normalized", "blocks.3.hook_mlp_out")


def test_only_a_layers_whole_output_has_the_number_of_the_layer(tmp_path):
    """SAEBench makes blocks.LAYER.hook_resid_post of it."""
    layers = {}
    for role in ("residual_out", "residual_in", "mlp_out"):
        url = saved(tmp_path / role, trained("topk"), **about({"layer": 3, "read": role}))
        export_dictionary(url, "dictionary-learning", str(tmp_path / f"{role}-out"))
        trainer = json.loads((tmp_path / f"{role}-out/config.json").read_text())["trainer"]
        layers[role] = (trainer["layer"], trainer["submodule_name"])
    assert layers["residual_out"] == (3, "blocks.3.hook_resid_post")
    assert layers["residual_in"] == (None, "blocks.3.hook_resid_pre")
    assert layers["mlp_out"] == (None, "blocks.3.hook_mlp_out")


def test_sites_of_several_models_have_their_own_models_name_and_hooks():
    content = about({"layer": 3, "model": "small"}, settings={
        "models": {"small": "org/small", "large": "org/large"}, "sites": {"in": {"layer": 3, "model": "small"}},
    }, models={"small": {"num_layers": 6}}, run={"model_types": {"small": "llama", "large": "bert"}})  # fmt: skip
    origin = origin_of({"dictionary": {"architecture": "topk"}, **content})
    assert (origin.model, origin.hook_name, origin.layer) == ("org/small", "blocks.3.hook_resid_post", 3)


@pytest.mark.parametrize("wrong", [None, 3, "x", [], {"a": 1}], ids=str)
@pytest.mark.parametrize("part", ["sites", "data", "training", "imported", "held_out"])
def test_a_part_of_a_config_that_is_something_else_says_nothing(part, wrong):
    content = about({"layer": 3}) | {part: wrong}
    assert origin_of({"dictionary": {"architecture": "topk"}, **content}).architecture == "topk"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            "gpt2",
            {"mid": "blocks.1.hook_resid_post", "mlp": "blocks.1.hook_mlp_out", "first": "blocks.0.hook_resid_post"},
        ),
        ("bert", dict.fromkeys(("mid", "mlp", "first"))),
    ],
)
def test_a_harvest_notes_the_family_of_its_model(model, expected, tmp_path):
    sites = {
        "mid": {"layer": 1},
        "mlp": {"layer": 1, "read": "mlp_out"},
        "first": {"hidden_state": 1},
        "last": {"hidden_state": 4},
    }
    manifest, _ = harvest(harvest_file(tmp_path, model=str(tiny_model(model)), sites=sites))
    names = {}
    for site in manifest.sites:
        content = {"sites": {"inputs": [{"name": site}]}, "data": {"provenance": manifest.provenance}}
        names[site] = origin_of({"dictionary": {"architecture": "topk"}, **content}).hook_name
    assert names == {**expected, "last": None}
    assert harvest(harvest_file(tmp_path, model=str(tiny_model(model)), sites=sites))[1]  # and finds itself again
