"""Reconstructions in place of a language model's activations: the ends of what is recovered, a forward pass by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from harvest_cases import DOCUMENTS, WORDS, causal_model, save_tokenizer, tiny_model, write_text
from model_families import make
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.harvest.site_choice import SiteChoice
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites, SiteStatistics
from lexray.training.measures.splice import PieceBatch, Spliced, recovered
from lexray.training.measures.texts import HarvestFacts, load_spliced, piece_batches, text_choice

WIDTH = 16


def facts_of(**sites: dict[str, Any]) -> HarvestFacts:
    return HarvestFacts.of({"settings": {"sites": sites, "context_length": 8}})


def batches_of(name: str, facts: HarvestFacts, tmp_path: Path, max_tokens: int = 10_000) -> list[PieceBatch]:
    text = text_choice(write_text(tmp_path / "text"))
    return list(piece_batches(causal_model(name), facts, text, max_tokens=max_tokens, device="cpu"))


def spliced_at(name: str, facts: HarvestFacts, *outputs: str, reads: tuple[str, ...] = ()) -> Spliced:
    return load_spliced(causal_model(name), facts, reads or outputs, outputs, "cpu")


def means_at(spliced: Spliced, batches: list[PieceBatch]) -> list[Tensor]:
    """Mean activation of text tokens at each output."""
    with torch.no_grad():
        found = [(spliced.activations(batch.inputs)[1], batch.text_BT) for batch in batches]
    return [torch.cat([acts[place][text] for acts, text in found]).mean(0) for place in spliced.outputs]


def dictionary_of(*means: Tensor, perfect: bool, width: int = WIDTH) -> Dictionary:
    """One that gives every row back, or the site's mean whatever it reads."""
    sites = [
        SiteStatistics(mean=tuple(mean.tolist()), mean_squared_norm=float(mean.square().sum()) + 1) for mean in means
    ]
    width *= len(means)
    name = "topk" if len(means) == 1 else "crosscoder_batch_topk"
    config = dictionary_config(
        {"architecture": name, "width": 2 * width, "target_l0": width, "normaliser": "none" if perfect else "standard"}
    )
    made = make_dictionary(config, Sites.same(*sites))
    both = torch.cat([torch.eye(width), -torch.eye(width)])
    state = {"W_enc": both if perfect else torch.zeros_like(both), "W_dec": both}
    made.load_state_dict({**made.state_dict(), **state})
    return made


PLACES = [
    ("gpt2", {"hidden_state": 2}),
    ("gpt2", {"hidden_state": 0}),
    ("gpt2", {"hidden_state": 4}),
    ("gpt2", {"layer": 1, "read": "mlp_out"}),
    ("llama", {"hidden_state": 2}),
    ("llama", {"hidden_state": 4}),
    ("llama", {"layer": 1, "read": "residual_out"}),
    ("llama", {"layer": 2, "read": "mlp_in"}),
    ("llama", {"layer": 2, "read": "attention_out"}),
]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_a_perfect_dictionary_recovers_all_and_the_mean_nothing(
    name: str, place: dict[str, Any], tmp_path: Path
) -> None:
    facts = facts_of(site=place)
    spliced, batches = spliced_at(name, facts, "site"), batches_of(name, facts, tmp_path)
    means = means_at(spliced, batches)
    perfect = recovered(spliced, dictionary_of(*means, perfect=True), batches)
    assert perfect["ce"]["replaced"] == perfect["ce"]["clean"]
    assert perfect["kl"]["replaced"] == pytest.approx(0, abs=1e-7)
    mean = recovered(spliced, dictionary_of(*means, perfect=False), batches)
    assert mean["ce"]["replaced"] == pytest.approx(mean["ce"]["mean"], rel=1e-6)
    assert mean["kl_recovered_mean"] == pytest.approx(0, abs=1e-4)
    assert mean["kl"]["mean"] > 1e-4
    assert mean["tokens_replaced"] == 45
    assert perfect["kl_recovered_mean"] == pytest.approx(1, abs=1e-4)


def test_on_a_text_of_the_models_own_the_mean_recovers_nothing_and_perfection_all(tmp_path: Path) -> None:
    """Documents of the words that a Llama finds likeliest: any change costs it something."""
    facts = facts_of(site={"hidden_state": 2})
    spliced = spliced_at("llama", facts, "site")
    ids = torch.tensor([[2, first] for first in range(4, 24)])
    with torch.no_grad():
        for _ in range(6):
            likeliest = spliced.model(input_ids=ids).logits[:, -1, 4:].argmax(1) + 4
            ids = torch.cat([ids, likeliest[:, None]], 1)
    glob = write_text(tmp_path, [" ".join(WORDS[token] for token in row[1:]) for row in ids.tolist()])
    text = text_choice(glob)
    batches = list(piece_batches(causal_model("llama"), facts, text, max_tokens=10_000, device="cpu"))
    means = means_at(spliced, batches)
    perfect = recovered(spliced, dictionary_of(*means, perfect=True), batches)
    mean = recovered(spliced, dictionary_of(*means, perfect=False), batches)
    assert perfect["ce"]["clean"] < perfect["ce"]["mean"]
    for floor in ("mean", "zero"):
        assert (perfect[f"ce_recovered_{floor}"], perfect[f"kl_recovered_{floor}"]) == pytest.approx((1, 1), abs=1e-6)
    assert (mean["ce_recovered_mean"], mean["kl_recovered_mean"]) == pytest.approx((0, 0), abs=1e-5)
    zero = mean["ce"]["zero"]
    assert mean["ce_recovered_zero"] == pytest.approx((zero - mean["ce"]["mean"]) / (zero - mean["ce"]["clean"]))


def test_losses_are_those_of_a_forward_pass_done_by_hand(tmp_path: Path) -> None:
    """Of a Llama: embeddings, layers one by one with zeros put before the third, norm and head."""
    facts = facts_of(site={"hidden_state": 2})
    spliced, batches = spliced_at("llama", facts, "site"), batches_of("llama", facts, tmp_path)
    found = recovered(spliced, dictionary_of(*means_at(spliced, batches), perfect=True), batches)
    model = spliced.model
    total = count = 0.0
    for batch in batches:
        for ids, mask, text in zip(
            batch.inputs["input_ids"], batch.inputs["attention_mask"], batch.text_BT, strict=True
        ):
            ids, text = ids[mask.bool()][None], text[mask.bool()][None]  # a piece by itself, without padding
            assert text.tolist() == [[False] + [True] * (ids.shape[1] - 1)], "all but the first token"

            def zeros(module: Any, args: Any, text: Tensor = text) -> Any:
                return (args[0].masked_fill(text[..., None], 0.0), *args[1:])

            with torch.no_grad():
                handle = model.model.layers[2].register_forward_pre_hook(zeros)
                logits = model(input_ids=ids).logits
                handle.remove()
            total += float(F.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
    assert found["tokens_predicted"] == count
    assert found["ce"]["zero"] == pytest.approx(total / count, rel=1e-5)


def test_what_is_found_does_not_depend_on_the_batches(tmp_path: Path) -> None:
    facts = facts_of(site={"hidden_state": 1})
    spliced, batches = spliced_at("gpt2", facts, "site"), batches_of("gpt2", facts, tmp_path)
    made = dictionary_of(*means_at(spliced, batches), perfect=False)
    one_by_one = [
        PieceBatch(
            inputs={key: value[i : i + 1] for key, value in batch.inputs.items()}, text_BT=batch.text_BT[i : i + 1]
        )
        for batch in batches
        for i in range(len(batch.text_BT))
    ]
    whole, parts = recovered(spliced, made, batches), recovered(spliced, made, one_by_one)
    assert parts["ce"] == pytest.approx(whole["ce"], rel=1e-5)
    assert parts["kl"] == pytest.approx(whole["kl"], rel=1e-3)
    assert parts["tokens_predicted"] == whole["tokens_predicted"]


def test_a_crosscoder_is_put_in_at_all_its_sites_and_a_transcoder_where_it_writes(tmp_path: Path) -> None:
    facts = facts_of(first={"hidden_state": 1}, second={"hidden_state": 3})
    spliced, batches = spliced_at("gpt2", facts, "first", "second"), batches_of("gpt2", facts, tmp_path)
    both = recovered(spliced, dictionary_of(*means_at(spliced, batches), perfect=True), batches)
    assert both["kl"]["replaced"] == pytest.approx(0, abs=1e-7)
    one = spliced_at("gpt2", facts, "second", reads=("first",))
    means = means_at(one, batches)
    site = SiteStatistics(mean=tuple(means[0].tolist()), mean_squared_norm=float(means[0].square().sum()) + 1)
    config = dictionary_config({"architecture": "transcoder", "width": 8, "target_l0": 2})
    made = make_dictionary(config, Sites(inputs=(site,), outputs=(site,)))
    made.load_state_dict({**made.state_dict(), "W_enc": torch.zeros(8, WIDTH)})
    found = recovered(one, made, batches)
    assert found["ce"]["replaced"] == pytest.approx(found["ce"]["mean"], rel=1e-6)
    where_it_writes, where_it_reads = (
        recovered(at, dictionary_of(*means_at(at, batches), perfect=False), batches)["ce"]["mean"]
        for at in (spliced_at("gpt2", facts, "second"), spliced_at("gpt2", facts, "first"))
    )
    assert found["ce"]["mean"] == pytest.approx(where_it_writes, rel=1e-6)
    assert found["ce"]["mean"] != pytest.approx(where_it_reads, rel=1e-3)


def test_rows_of_outlying_norm_keep_their_activations(tmp_path: Path) -> None:
    facts = facts_of(site={"hidden_state": 2})
    spliced, batches = spliced_at("gpt2", facts, "site"), batches_of("gpt2", facts, tmp_path)
    made = dictionary_of(*means_at(spliced, batches), perfect=False)
    none = recovered(spliced, made, batches, max_norms=(0.0, 0.0))
    assert none["tokens_replaced"] == 0
    assert none["ce"]["clean"] == none["ce"]["mean"] == none["ce"]["replaced"]
    assert none["ce_recovered_mean"] is None, "there is no floor to stand on"


def test_what_cannot_be_spliced_is_refused_in_one_line(tmp_path: Path) -> None:
    facts = facts_of(site={"hidden_state": 2})
    bert = spliced_at("bert", facts, "site")
    batches = batches_of("bert", facts, tmp_path)
    with pytest.raises(UserError, match="its tokens see later ones"):
        recovered(bert, dictionary_of(torch.zeros(WIDTH), perfect=True), batches)
    gpt2 = spliced_at("gpt2", facts, "site")
    config = dictionary_config({"architecture": "topk", "width": 12, "target_l0": 2})
    narrow = make_dictionary(config, Sites.same(SiteStatistics(mean=(0.0,) * 12, mean_squared_norm=1.0)))
    batches = batches_of("gpt2", facts, tmp_path)
    with pytest.raises(UserError, match=r"widths \[16, 16\], the dictionary's \{'inputs': \[12\]"):
        recovered(gpt2, narrow, batches)
    with pytest.raises(UserError, match="no whole language model"):
        load_spliced(str(tiny_model("llama")), facts, ("site",), ("site",), "cpu")
    with pytest.raises(UserError, match="nothing tells where 'other' is read"):
        spliced_at("gpt2", facts, "other")
    for settings, said in (({"rows": "text"}, "no tokens of a text"), ({"models": {"a": "b"}}, "several models")):
        with pytest.raises(UserError, match=said):
            HarvestFacts.of({"settings": settings})


def test_places_that_are_given_stand_in_for_those_of_the_dataset() -> None:
    facts = HarvestFacts.of({}, {"site": {"layer": 1}})
    assert facts.sites == {"site": SiteChoice(layer=1)}
    with pytest.raises(UserError, match=r"sites.site: .*laier"):
        HarvestFacts.of({}, {"site": {"laier": 1}})


def test_the_text_is_read_up_to_the_tokens_that_are_wanted(tmp_path: Path) -> None:
    facts = facts_of(site={"hidden_state": 2})
    assert len(DOCUMENTS) == 5
    whole, some = (batches_of("llama", facts, tmp_path, wanted) for wanted in (10_000, 20))
    counts = [sum(int(batch.inputs["attention_mask"].sum()) for batch in part) for part in (whole, some)]
    assert counts[0] > 50
    assert 20 <= counts[1] < 28


@pytest.mark.parametrize("name", ["gemma3", "llava", "qwen2_vl"])
def test_a_language_model_inside_another_is_spliced(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make(name).save_pretrained(folder)
    save_tokenizer(folder, "$A")
    facts = facts_of(site={"hidden_state": 2})
    spliced = load_spliced(str(folder), facts, ("site",), ("site",), "cpu")
    text = text_choice(write_text(tmp_path / "text"))
    batches = list(piece_batches(str(folder), facts, text, max_tokens=10_000, device="cpu"))
    found = recovered(spliced, dictionary_of(*means_at(spliced, batches), perfect=True, width=32), batches)
    assert found["kl"]["replaced"] == pytest.approx(0, abs=1e-6)
    assert found["kl"]["zero"] > 1e-6


def test_the_flat_output_of_a_module_is_spliced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    make("opt").save_pretrained(folder)
    save_tokenizer(folder, "$A")
    facts = facts_of(site={"module": "decoder.layers.1.fc2"})
    spliced = load_spliced(str(folder), facts, ("site",), ("site",), "cpu")
    text = text_choice(write_text(tmp_path / "text"))
    batches = list(piece_batches(str(folder), facts, text, max_tokens=10_000, device="cpu"))
    found = recovered(spliced, dictionary_of(*means_at(spliced, batches), perfect=True, width=32), batches)
    assert found["kl"]["replaced"] == pytest.approx(0, abs=1e-6)
    assert found["tokens_replaced"] == 45


def test_an_encoder_decoder_is_not_spliced(tmp_path: Path) -> None:
    make("t5").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is an encoder-decoder; give a causal language model"):
        load_spliced(str(tmp_path), facts_of(site={"hidden_state": 2}), ("site",), ("site",), "cpu")


def test_texts_are_read_by_the_ending_of_their_name() -> None:
    for name in ("a.jsonl", "c4/*.json.gz", "pile/00.jsonl.zst", "x.ndjson", "s3://b/A.JSON"):
        assert text_choice(name).jsonl == name
    assert text_choice("s3://b/*.parquet").parquet == "s3://b/*.parquet"
    for name in ("a.txt", "c.json.d/*.txt", "jsonlines/*.txt"):
        assert text_choice(name).files == name
