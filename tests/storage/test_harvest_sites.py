"""Sites are read where they say, in any module or role of a layer and in several models, in one aligned pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvest_cases import (
    BERT,
    DOCUMENTS,
    SIZES,
    WORDS,
    expected_pieces,
    harvest_file,
    read_column,
    read_site,
    refusal,
    save_model,
    save_tokenizer,
    tiny_model,
)
from transformers import (
    AutoModel,
    BloomConfig,
    DistilBertConfig,
    Gemma2Config,
    GPTNeoXConfig,
    MistralConfig,
    Qwen2Config,
    RobertaConfig,
)

from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.model_reader import choose_reader
from lexray.storage.harvest.site_choice import SiteChoice, find_place
from lexray.storage.harvest.token_rows import pad

ROLES = ("residual_in", "residual_out", "mlp_in", "mlp_out", "attention_out")
DECODER: dict[str, Any] = {**SIZES, "num_hidden_layers": 3, "intermediate_size": 32, "num_key_value_heads": 2}
ENCODER: dict[str, Any] = {**SIZES, "num_hidden_layers": 3, "intermediate_size": 32, "max_position_embeddings": 32}


def hooked(model: Any, ids: list[int], path: str, side: str) -> torch.Tensor:
    """What torch's own hooks see in the whole model, run on one piece without padding (T, D)."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(path)
    if side == "input":
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0].clone()), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(
            lambda _, args, out: seen.append((out if isinstance(out, torch.Tensor) else out[0]).clone())
        )
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0][0]


def test_modules_and_roles_are_what_hooks_on_the_whole_model_see(tmp_path: Path) -> None:
    sites = {
        "dense": {"module": "encoder.layer.2.output.dense"},
        "into": {"module": "encoder.layer.1.intermediate", "read": "input"},
        "attended": {"layer": 1, "read": "attention_out"},
        "resid": {"layer": 0},
        "state": {"hidden_state": 1},
    }
    config = harvest_file(tmp_path, sites=sites, dtype="float32")
    manifest, _ = harvest(config)
    model = AutoModel.from_pretrained(tiny_model("bert")).eval()
    places = {
        "dense": ("encoder.layer.2.output.dense", "output"),
        "into": ("encoder.layer.1.intermediate", "input"),
        "attended": ("encoder.layer.1.attention.output.dense", "output"),
        "resid": ("encoder.layer.0", "output"),
        "state": ("encoder.layer.0", "output"),
    }
    for name, (path, side) in places.items():
        expected = [hooked(model, ids, path, side)[1:-1] for _, ids in expected_pieces(([2], [3]), 8)]
        torch.testing.assert_close(read_site(config, manifest, name), torch.cat(expected), rtol=0, atol=2e-6)
    assert manifest.sites["attended"].source == (
        "attention_out of layer 1 (output of encoder.layer.1.attention.output.dense)"
    )


@pytest.mark.parametrize(
    ("config", "layers", "parts"),
    [
        (BERT, "encoder.layer", ("attention.output.dense", "intermediate", "output.dense")),
        (RobertaConfig(**ENCODER), "encoder.layer", ("attention.output.dense", "intermediate", "output.dense")),
        (
            DistilBertConfig(vocab_size=44, dim=16, n_layers=3, n_heads=2, hidden_dim=32),
            "transformer.layer",
            ("attention.out_lin", "ffn", "ffn"),
        ),
        (tiny_model("gpt2"), "h", ("attn.c_proj", "mlp", "mlp")),
        (tiny_model("llama"), "layers", ("self_attn.o_proj", "mlp", "mlp")),
        (Qwen2Config(**DECODER), "layers", ("self_attn.o_proj", "mlp", "mlp")),
        (MistralConfig(**DECODER), "layers", ("self_attn.o_proj", "mlp", "mlp")),
        (Gemma2Config(**DECODER, head_dim=8), "layers", ("self_attn.o_proj", "mlp", "mlp")),
        (GPTNeoXConfig(**ENCODER, eos_token_id=3), "layers", ("attention.dense", "mlp", "mlp")),
    ],
    ids=lambda value: getattr(value, "model_type", getattr(value, "name", None)),
)
def test_roles_of_common_architectures(config: Any, layers: str, parts: tuple[str, str, str]) -> None:
    if isinstance(config, Path):
        model = AutoModel.from_pretrained(config).eval()
    else:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = AutoModel.from_config(config).eval()
    ids = [2, 5, 9, 11, 3]
    inputs, num_layers = pad([np.array(ids, np.int32)], 0), model.config.num_hidden_layers
    attention, mlp_first, mlp_last = (f"{layers}.1.{part}" for part in parts)
    expected = {
        "residual_in": hooked(model, ids, f"{layers}.0", "output"),
        "residual_out": hooked(model, ids, f"{layers}.1", "output"),
        "attention_out": hooked(model, ids, attention, "output"),
        "mlp_in": hooked(model, ids, mlp_first, "input"),
        "mlp_out": hooked(model, ids, mlp_last, "output"),
    }
    places = {role: find_place(role, SiteChoice(layer=1, read=role), model, num_layers) for role in ROLES}
    found = choose_reader(model, num_layers=num_layers, places=places, first=inputs).read(inputs)
    for role in ROLES:
        assert torch.equal(found[role][0], expected[role]), role


def test_one_pass_ends_behind_the_deepest_module() -> None:
    model = AutoModel.from_pretrained(tiny_model("llama")).eval()
    run: list[int] = []
    choices = {"a": SiteChoice(layer=0, read="mlp_out"), "b": SiteChoice(layer=2, read="mlp_in")}
    places = {name: find_place(name, choice, model, 4) for name, choice in choices.items()}
    inputs = pad([np.array([2, 5, 7], np.int32)], 0)
    reader = choose_reader(model, num_layers=4, places=places, first=inputs)
    for number, layer in enumerate(model.layers):
        layer.mlp.act_fn.register_forward_hook(lambda *_, number=number: run.append(number))
    reader.read(inputs)
    assert run == [0, 1]


def test_two_models_on_the_same_tokens(tmp_path: Path) -> None:
    base, tuned = tiny_model("bert"), save_model(tmp_path / "tuned", BERT, "[CLS] $A [SEP]", seed=5)
    sites = {"base": {"model": "a", "hidden_state": 2}, "tuned": {"model": "b", "layer": 1, "read": "residual_out"}}
    both = harvest_file(tmp_path, model=None, models={"a": str(base), "b": str(tuned)}, sites=sites, spread=True)
    manifest, _ = harvest(both)
    for name, folder in (("base", base), ("tuned", tuned)):
        one = harvest_file(
            tmp_path,
            output=str(tmp_path / f"{name}-alone"),
            model=str(folder),
            sites={name: {"hidden_state": 2}},
            spread=True,
        )
        alone, _ = harvest(one)
        assert torch.equal(read_site(both, manifest, name), read_site(one, alone, name))
        for column in ("token_id", "position", "document"):
            assert np.array_equal(read_column(both, manifest, column), read_column(one, alone, column))
    assert manifest.sites["tuned"].source == "residual_out of layer 1 (output of encoder.layer.1), model b"
    assert set(manifest.provenance["models"]) == {"a", "b"}
    assert harvest(both)[1]


def test_models_that_see_different_tokens_are_refused(tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", BERT, "[CLS] $A [SEP]")
    save_tokenizer(other, "[CLS] $A [SEP]", [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]])
    sites = {"x": {"model": "a", "hidden_state": 1}, "y": {"model": "b", "hidden_state": 1}}
    config = harvest_file(tmp_path, model=None, models={"a": str(tiny_model("bert")), "b": str(other)}, sites=sites)
    assert DOCUMENTS[0].startswith("w0 w1 ")
    assert refusal(config) == (
        "models: models.a and models.b see 5 and 6 as token 2 of document 0; "
        "models of one dataset need the same tokenizer"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (
            {"module": "encoder.layer.3.output.dens"},
            "sites.x.module: the model has no module 'encoder.layer.3.output.dens'; "
            "there are encoder.layer.3.output.dense, ",
        ),
        ({"module": "embeddings.position_embeddings"}, "sites.x: has (1, 8) vectors for (pieces, tokens) (2, 8)"),
        ({"module": "pooler"}, "sites.x: the output of pooler has the shape (2, 16), expected (pieces, tokens, width)"),
        ({"module": "encoder.layer"}, "sites: the model runs encoder.layer 0 times for a text; choose another module"),
    ],
)
def test_modules_that_give_no_rows(site: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refusal(harvest_file(tmp_path, sites={"x": site})).startswith(message)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_module_that_is_run_several_times(tmp_path: Path) -> None:
    path = "encoder.albert_layer_groups.0.albert_layers.0.ffn"
    config = harvest_file(tmp_path, model=str(tiny_model("albert")), sites={"x": {"module": path}})
    assert refusal(config) == f"sites: the model runs {path} 4 times for a text; choose another module"


def test_a_role_that_is_not_known_tells_the_modules(tmp_path: Path) -> None:
    bloom = BloomConfig(vocab_size=len(WORDS), hidden_size=16, n_layer=4, n_head=2)
    folder = save_model(tmp_path / "bloom", bloom, "$A")
    config = harvest_file(tmp_path, model=str(folder), sites={"x": {"layer": 1, "read": "mlp_out"}})
    message = refusal(config)
    assert message.startswith(
        "sites.x.read: mlp_out is not known for models of type 'bloom'; give a module of the layer: "
    )
    assert "h.1.mlp.dense_4h_to_h" in message
