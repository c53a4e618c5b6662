"""Models of many families are read as transformers itself reports their hidden states, also inside larger models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvest_cases import (
    WORDS,
    expected_pieces,
    harvest_file,
    read_site,
    refusal,
    save_model,
    save_tokenizer,
    tiny_model,
    write_text,
)
from model_families import FAMILIES, LAYERS, NAMED, SIZES, VISION, Family, make
from quick_cases import quick
from transformers import (
    AutoModel,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    ViTConfig,
    WhisperConfig,
)

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.language_model import ModelFacts, inspect_model, load_model
from lexray.storage.harvest.model_reader import ModelReader, choose_reader
from lexray.storage.harvest.site_choice import SiteChoice, find_place
from lexray.storage.harvest.token_rows import pad

PIECES = [np.random.default_rng(length).integers(4, len(WORDS), length).astype(np.int32) for length in (7, 12, 5)]
QUICK = (
    "gemma3", "llava", "qwen2_vl", "mllama", "clip", "siglip_text_alone", "blip2_opt", "t5", "t5_encoder", "bart",
    "marian", "prophetnet", "fnet", "roberta", "xlnet", "xlm", "opt", "bloom", "mixtral", "mamba",
)  # fmt: skip
assert set(QUICK) <= set(FAMILIES)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost tiny models more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reader_of(model: Any, facts: ModelFacts, **choices: SiteChoice) -> ModelReader:
    places = {name: find_place(name, choice, model, facts.num_layers) for name, choice in choices.items()}
    return choose_reader(model, num_layers=facts.num_layers, places=places, first=pad(PIECES, 0))


def read_pieces(reader: ModelReader) -> list[dict[str, torch.Tensor]]:
    """Per piece what each site holds (T, D): of the three together, or of each alone where padding changes them."""
    if reader.pads:
        found = reader.read(pad(PIECES, 0))
        return [{name: x[row, : len(ids)] for name, x in found.items()} for row, ids in enumerate(PIECES)]
    return [{name: x[0] for name, x in reader.read(pad([ids], 0)).items()} for ids in PIECES]


def check_family(family: Family, whole: Any, folder: Path) -> None:
    whole.save_pretrained(folder)
    facts = inspect_model(str(folder))
    assert (facts.tower, facts.num_layers, facts.max_context) == (family.tower, LAYERS, family.context)
    assert facts.vocabulary == family.vocabulary
    model = load_model(facts)
    reader = reader_of(model, facts, **{f"h{i}": SiteChoice(hidden_state=i) for i in range(family.num_states)})
    assert reader.pads == family.pads
    for ids, found in zip(PIECES, read_pieces(reader), strict=True):
        ids_BT = torch.from_numpy(ids.astype(np.int64))[None]
        with torch.no_grad():
            states = family.states(whole, {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)})
        assert len(states) == family.num_states
        for number, x_BTD in enumerate(states):
            torch.testing.assert_close(found[f"h{number}"], x_BTD[0], rtol=1e-4, atol=1e-5)
    check_roles(family, model, facts)


def check_roles(family: Family, model: Any, facts: ModelFacts) -> None:
    """The residual stream of layer 1 is what the next one reads, and what pre-norm parts add; others are refused."""
    for role in sorted(NAMED - family.roles):
        with pytest.raises(UserError, match=r"^sites\.x[.:]|^sites: the model runs"):
            reader_of(model, facts, x=SiteChoice(layer=1, read=role))  # type: ignore[arg-type]
    if "residual_out" in family.roles:
        choices = {role: SiteChoice(layer=1, read=role) for role in family.roles}  # type: ignore[arg-type]
        following = SiteChoice(layer=2, read="residual_in")
        for found in read_pieces(reader_of(model, facts, **choices, following=following)):
            assert torch.equal(found["residual_out"], found["following"])
            assert not torch.equal(found["residual_out"], found["residual_in"])


@pytest.mark.parametrize("name", quick(FAMILIES, QUICK))
def test_a_family_is_read_as_transformers_reports_it(name: str, tmp_path: Path) -> None:
    check_family(FAMILIES[name], make(name), tmp_path)


@pytest.mark.parametrize("name", ["gemma3", "clip", "t5_encoder", "xlnet"])
def test_a_harvest_of_a_model_inside_another(name: str, tmp_path: Path) -> None:
    """The whole way: tokenizer, batches, stored rows."""
    family, whole, folder = FAMILIES[name], make(name), tmp_path / "model"
    whole.save_pretrained(folder)
    save_tokenizer(folder, "[CLS] $A [SEP]")
    config = harvest_file(tmp_path, model=str(folder), sites={"x": {"hidden_state": 2}}, dtype="float32")
    manifest, _ = harvest(config)
    rows = []
    for _, ids in expected_pieces(([2], [3]), 8):
        ids_BT = torch.tensor([ids])
        with torch.no_grad():
            states = family.states(whole, {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)})
        rows.append(states[2][0, 1:-1])
    torch.testing.assert_close(read_site(config, manifest, "x"), torch.cat(rows), rtol=1e-4, atol=1e-5)
    assert manifest.sites["x"].width == 32


@pytest.mark.parametrize("name", [name for name in QUICK if FAMILIES[name].context is not None])
def test_the_longest_context_can_be_run(name: str, tmp_path: Path) -> None:
    """No id falls outside a table of positions; where there is a table, one token more does."""
    make(name).save_pretrained(tmp_path)
    facts = inspect_model(str(tmp_path))
    assert facts.max_context is not None
    ids_BT = torch.full((1, facts.max_context), 7)
    with torch.no_grad():
        load_model(facts)(input_ids=ids_BT)


@pytest.mark.parametrize("name", ["roberta", "opt", "bart", "clip", "xlm"])
def test_a_context_beyond_the_positions_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    folder, limit = tmp_path / "model", FAMILIES[name].context
    assert limit is not None
    make(name).save_pretrained(folder)
    save_tokenizer(folder, "$A")
    settings: dict[str, Any] = {"model": str(folder), "text": {"files": str(tmp_path / "*.none")}}
    config = harvest_file(tmp_path, **settings, context_length=limit + 1)
    assert refusal(config) == f"context_length: {limit + 1}, but the model takes at most {limit} tokens"
    model = load_model(inspect_model(str(folder)))
    with pytest.raises((IndexError, ValueError, RuntimeError)), torch.no_grad():
        model(input_ids=torch.full((1, limit + 1), 7))


def test_a_pad_token_beyond_the_embedding_is_not_used(tmp_path: Path) -> None:
    """Llama with a [PAD] that was added to the tokenizer alone; padding is masked, so rows are those without it."""
    folder, words = tmp_path / "model", [*WORDS[1:], "[PAD]"]
    config = LlamaConfig(**{**SIZES, "vocab_size": len(words) - 1, "pad_token_id": None})
    save_model(folder, config, "$A")
    save_tokenizer(folder, "$A", words)
    sites, template = {"x": {"hidden_state": 1}}, {"dtype": "float32", "model": str(folder)}
    padded = harvest_file(tmp_path, sites=sites, **template)
    alone = harvest_file(tmp_path, sites=sites, **template, batch_tokens=1, output=str(tmp_path / "alone"))
    rows = [read_site(each, harvest(each)[0], "x") for each in (padded, alone)]
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-4, atol=1e-5)


def test_a_token_beyond_the_embedding_is_named_with_its_document(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", GPT2Config(vocab_size=30, n_embd=16, n_layer=2, n_head=2), "$A")
    documents = ["w1 w2", "w3", f"w4 {WORDS[35]} {WORDS[30]}"]
    text = {"files": write_text(tmp_path / "short", documents)}
    assert refusal(harvest_file(tmp_path, model=str(folder), sites={"x": {"hidden_state": 1}}, text=text)) == (
        f"model: document 2 holds token 35 ('{WORDS[35]}'), but the embedding of '{folder}' has 30 rows; "
        "give the tokenizer that the model was trained with, or a model that was resized for it"
    )
    assert not (tmp_path / "out").exists()


def flat_models() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Models with modules that give (pieces x tokens, width)."""
    opt = OPTConfig(**{**SIZES, "pad_token_id": 1}, ffn_dim=64, word_embed_proj_dim=32)
    mixtral = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4)
    return {
        "fc1": (opt, {"module": "decoder.layers.1.fc1"}),
        "fc2": (opt, {"module": "decoder.layers.1.fc2"}),
        "router": (mixtral, {"module": "layers.1.mlp.gate", "read": "input"}),
        "experts": (mixtral, {"module": "layers.1.mlp.experts"}),
    }


@pytest.mark.parametrize("name", list(flat_models()))
def test_two_dimensional_outputs_are_rows_of_the_right_tokens(name: str, tmp_path: Path) -> None:
    config, site = flat_models()[name]
    folder = save_model(tmp_path / "model", config, "$A")
    wanted = harvest_file(tmp_path, model=str(folder), sites={"x": site}, dtype="float32")
    manifest, _ = harvest(wanted)
    model, seen = AutoModel.from_pretrained(folder).eval(), []
    module = model.get_submodule(site["module"])
    if site.get("read") == "input":
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    else:
        module.register_forward_hook(lambda _, args, out: seen.append(out))
    with torch.no_grad():
        for _, ids in expected_pieces(([], []), 8):
            model(input_ids=torch.tensor([ids]))
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in seen])
    torch.testing.assert_close(read_site(wanted, manifest, "x"), rows, rtol=1e-4, atol=1e-5)


class Routed(torch.nn.Module):
    """Stands in for an expert: it computes with some of the tokens, or with all in an order of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.inner = kind, torch.nn.Identity()

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_RD = x_BTD.flatten(0, 1)
        order = x_RD[:, 0].argsort() if self.kind == "sorted" else (x_RD[:, 0] > 0).nonzero()[:, 0]
        self.inner(x_RD[order])
        return x_BTD


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sorted", "sites.x: vectors of the output of layers.1.input_layernorm.1.inner depend on the other texts"),
        ("some", "vectors for 24 tokens; choose another module (an expert sees only the tokens that are routed to it)"),
    ],
)
def test_experts_that_see_some_tokens_or_sort_them_are_refused(kind: str, said: str) -> None:
    model = AutoModel.from_pretrained(tiny_model("llama")).eval()
    layer = model.layers[1]
    layer.input_layernorm = torch.nn.Sequential(layer.input_layernorm, Routed(kind))
    facts = ModelFacts("llama", "model", "", 4, None, "")
    with pytest.raises(UserError) as caught:
        reader_of(model, facts, x=SiteChoice(module="layers.1.input_layernorm.1.inner"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            WhisperConfig(
                vocab_size=44, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                decoder_attention_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
            ),
            "a model of type 'whisper' that reads input_features, not token ids of a text",
        ),
        (ViTConfig(**VISION), "a model of type 'vit' that reads pixel_values, not token ids of a text"),
    ],
    ids=["whisper", "vit"],
)  # fmt: skip
def test_models_that_read_no_text_say_what_they_read(config: Any, said: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path / "model")
    message = refusal(harvest_file(tmp_path, model=str(tmp_path / "model")))
    assert message == f"model: '{tmp_path / 'model'}' is {said}; choose a language model or text encoder"
