"""Harvested rows are the model's own hidden states; what cannot be done is told in one line and leaves nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harvest_cases import (
    BERT,
    DOCUMENTS,
    FRAMES,
    GPT2,
    expected_pieces,
    harvest_file,
    read_column,
    read_site,
    refusal,
    save_model,
    save_tokenizer,
    tiny_model,
    write_text,
)
from transformers import AutoModel, BertConfig, T5Config

from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.model_reader import ModelReader, choose_reader, read_whole
from lexray.storage.harvest.site_choice import TensorSite
from lexray.storage.harvest.token_rows import pad
from lexray.storage.store import Store
from lexray.storage.writer import DatasetWriter


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "albert"])
def test_rows_are_the_hidden_states_of_the_whole_model(name: str, tmp_path: Path) -> None:
    sites = {f"h{i}": {"hidden_state": i} for i in (0, 1, 3)}
    config = harvest_file(tmp_path, model=str(tiny_model(name)), sites=sites, dtype="float32")
    manifest, reused = harvest(config)
    assert not reused
    model, frame = AutoModel.from_pretrained(tiny_model(name)).eval(), FRAMES[name]
    columns: dict[str, list[int]] = {"token_id": [], "position": [], "document": []}
    vectors: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for document, ids in expected_pieces(frame, config.context_length):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
        text = slice(len(frame[0]), len(ids) - len(frame[1]))
        columns["token_id"] += ids[text]
        columns["position"] += range(len(ids))[text]
        columns["document"] += [document] * len(ids[text])
        for site, choice in sites.items():
            vectors[site].append(states[choice["hidden_state"]][0, text])
    assert manifest.rows == len(columns["token_id"]) == 45
    for column, values in columns.items():
        assert read_column(config, manifest, column).tolist() == values
    for site in sites:
        # Padding to a batch changes the order of additions, not more.
        torch.testing.assert_close(read_site(config, manifest, site), torch.cat(vectors[site]), rtol=0, atol=2e-6)


def reader_of(model: Any, wanted: set[int], pieces: list[list[int]]) -> ModelReader:
    first = pad([np.array(ids, np.int32) for ids in pieces], 0)
    return choose_reader(model, num_layers=4, places={str(i): TensorSite(i) for i in wanted}, first=first)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("wanted", [{0}, {1, 3}, {0, 2}])
def test_stopping_early_changes_no_bit(name: str, wanted: set[int]) -> None:
    model = AutoModel.from_pretrained(tiny_model(name)).eval()
    run: list[int] = []
    layers = model.get_submodule({"bert": "encoder.layer", "gpt2": "h", "llama": "layers"}[name])
    reader = reader_of(model, wanted, [[2, 5, 6, 3], [2, 7, 3]])
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    other = pad([np.arange(4, 20, dtype=np.int32), np.array([9, 8], np.int32), np.array([2], np.int32)], 0)
    early, real = reader.read(other), other["attention_mask"].bool()
    assert run == list(range(max(wanted)))
    whole = read_whole(model, {TensorSite(number) for number in wanted}, other)
    for number in wanted:
        assert torch.equal(early[str(number)][real], whole[TensorSite(number)][real])


def test_a_model_that_cannot_stop_early_is_run_whole() -> None:
    model = AutoModel.from_pretrained(tiny_model("bert")).eval()
    assert reader_of(model, {3}, [[2, 5, 3]]).layers is not None
    assert reader_of(model, {4}, [[2, 5, 3]]).layers is None
    # A layer that is fed something other than what the model reports.
    model.encoder.layer[2].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]), prepend=True)
    assert reader_of(model, {2}, [[2, 5, 3]]).layers is None


def test_the_last_hidden_state_has_the_final_norm(tmp_path: Path) -> None:
    sites = {"end": {"hidden_state": 4}}
    manifest, _ = harvest(harvest_file(tmp_path, model=str(tiny_model("llama")), sites=sites, dtype="float32"))
    # 16 values of mean square 1, but for the epsilon of the norm; without the norm it would be below 1.
    assert manifest.sites["end"].mean_squared_norm == pytest.approx(16, rel=1e-2)


def test_rounding_statistics_and_words(tmp_path: Path) -> None:
    config, exact = harvest_file(tmp_path), harvest_file(tmp_path, output=str(tmp_path / "exact"), dtype="float32")
    manifest, _ = harvest(config)
    stored = read_site(config, manifest, "layer2")
    assert torch.equal(stored, read_site(exact, harvest(exact)[0], "layer2").bfloat16())
    site = manifest.sites["layer2"]
    rows = stored.double().numpy()
    assert (site.width, site.dtype, site.source) == (16, "bfloat16", "hidden state after layer 2")
    np.testing.assert_allclose(site.mean, rows.mean(0), rtol=1e-12, atol=1e-15)
    assert site.mean_squared_norm == pytest.approx((rows**2).sum(1).mean(), rel=1e-12)
    # Pieces of six tokens are not divided: 6 + 6 + 6, then 5 + 2 + 3 + 6, then 6 + 5.
    assert [shard.rows for shard in manifest.shards] == [18, 16, 11]
    assert manifest.special_token_ids == [0, 2, 3]
    assert {"torch", "transformers", "compute_dtype", "threads"} <= manifest.provenance["run"].keys()
    assert 1 in read_column(config, manifest, "token_id"), "an unknown word is text"


def test_kept_special_tokens_can_be_filtered_later(tmp_path: Path) -> None:
    dropped = harvest_file(tmp_path)
    kept = harvest_file(tmp_path, output=str(tmp_path / "kept"), special_tokens="keep", shard_rows=1000)
    manifest, _ = harvest(kept)
    ids = read_column(kept, manifest, "token_id")
    text = ~np.isin(ids, manifest.special_token_ids)
    assert len(ids) == 45 + 2 * len(expected_pieces(([2], [3]), 8))
    # Other shards are other batches, hence other padding: a value may round to its neighbour.
    torch.testing.assert_close(
        read_site(kept, manifest, "layer2")[torch.from_numpy(text)],
        read_site(dropped, harvest(dropped)[0], "layer2"),
        rtol=0.01,
        atol=1e-4,
    )


@pytest.mark.parametrize("spread", [False, True])
@pytest.mark.parametrize("max_rows", [1, 6, 20, 45, 1000])
def test_max_rows_is_exact_and_progress_reaches_it(max_rows: int, spread: bool, tmp_path: Path) -> None:
    part = harvest_file(tmp_path, output=str(tmp_path / "part"), max_rows=max_rows, spread=spread)
    seen: list[tuple[int, int]] = []
    manifest, _ = harvest(part, on_progress=lambda done, total: seen.append((done, total)))
    rows = min(max_rows, 45)
    assert manifest.rows == rows
    assert seen[0] == (0, rows)
    assert seen[-1] == (rows, rows)
    assert seen == sorted(seen)
    places = zip(read_column(part, manifest, "document"), read_column(part, manifest, "token_id"), strict=True)
    text = [(number, token) for number, ids in expected_pieces(([2], [3]), 8) for token in ids[1:-1]]
    assert sorted(places) == sorted(text[:rows])


def test_text_and_model_of_installed_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lexray_test_package"
    shutil.copytree(tiny_model("bert"), package / "model")
    (package / "__init__.py").write_text(f"pages = {dict(enumerate(DOCUMENTS))!r}\nnumbers = [1, 2]\none = 'x'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from_files = harvest(harvest_file(tmp_path))[0]
    changes = {"model": "package:lexray_test_package/model", "text": {"python": "lexray_test_package:pages"}}
    assert harvest(harvest_file(tmp_path, output=str(tmp_path / "b"), **changes))[0].id == from_files.id
    for attribute, message in {
        "none": "text.python: module 'lexray_test_package' has no 'none'",
        "numbers": "text.python: lexray_test_package:numbers entry 0 is a int, expected a string",
        "one": "text.python: lexray_test_package:one is a str, expected a list or dict of strings",
    }.items():
        text = {"python": f"lexray_test_package:{attribute}"}
        assert refusal(harvest_file(tmp_path, output=str(tmp_path / "c"), text=text)) == message
    config = harvest_file(tmp_path, output=str(tmp_path / "c"), model="package:lexray_test_package/nothing")
    assert refusal(config) == "model: the Python package 'lexray_test_package' has no folder 'nothing'"


def test_the_same_harvest_is_used_again(tmp_path: Path) -> None:
    config = harvest_file(tmp_path)
    first, _ = harvest(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    again, reused = harvest(harvest_file(tmp_path, cpus_per_worker=1))
    assert reused
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == before
    (Path(config.output) / first.shards[1].file).unlink()
    assert "shards/000001.safetensors is missing" in refusal(config)


def test_documents_behind_max_rows_do_not_matter(tmp_path: Path) -> None:
    words = [f"w{i % 40} w{i % 7}" for i in range(200)]
    text = {"files": write_text(tmp_path / "many", words)}
    harvest(harvest_file(tmp_path, text=text, max_rows=20))
    (tmp_path / "many" / "0199.txt").write_text("w9")
    assert harvest(harvest_file(tmp_path, text=text, max_rows=20))[1]
    (tmp_path / "many" / "0000.txt").write_text("w9")
    assert refusal(harvest_file(tmp_path, text=text, max_rows=20)).startswith("text.")


def test_another_harvest_is_never_overwritten(tmp_path: Path) -> None:
    harvest(harvest_file(tmp_path))
    end = f"the dataset in {tmp_path / 'out'} was harvested with"
    rest = "; choose another output or remove that one"
    assert refusal(harvest_file(tmp_path, context_length=9)) == f"context_length: 9, but {end} 8{rest}"
    assert refusal(harvest_file(tmp_path, batch_tokens=9)) == f"batch_tokens: 9, but {end} 24{rest}"
    assert refusal(harvest_file(tmp_path, max_rows=3)) == f"max_rows: 3, but {end} none{rest}"
    moved = harvest_file(tmp_path, sites={"layer2": {"hidden_state": 1}})
    assert refusal(moved) == f"sites.layer2.hidden_state: 1, but {end} 2{rest}"
    more = harvest_file(tmp_path, sites={"layer2": {"hidden_state": 2}, "x": {"hidden_state": 1}})
    assert refusal(more) == f"sites.x.hidden_state: 1, but {end} none{rest}"
    config = harvest_file(tmp_path)
    (tmp_path / "text" / "0002.txt").write_text("w1 w3")
    assert refusal(config).startswith("text.sha256: ")
    (tmp_path / "text" / "9.txt").write_text("w3")
    assert refusal(config) == f"text.documents: 6, but {end} 5{rest}"


def test_other_weights_are_another_harvest(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", BERT, "[CLS] $A [SEP]")
    config = harvest_file(tmp_path, model=str(folder))
    harvest(config)
    save_model(folder, BERT, "[CLS] $A [SEP]", lambda model: model.encoder.layer[0].output.dense.weight.mul_(2))
    assert refusal(config).startswith("model.fingerprint: ")


def test_a_dataset_of_another_origin_is_refused(tmp_path: Path) -> None:
    config = harvest_file(tmp_path)
    writer = DatasetWriter(store=Store.at(config.output), sites={"x": 2})
    column = np.zeros(3, np.int32)
    writer.add({"x": torch.ones(3, 2)}, {"token_id": column, "position": column, "document": column})
    writer.close()
    assert refusal(config) == (
        f"output: {tmp_path / 'out'} holds a dataset that was not harvested by lexray; choose another output"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sites": {"layer9": {"hidden_state": 9}}},
            "sites.layer9.hidden_state: 9, but the model has 4 layers (0 to 4)",
        ),
        ({"sites": {"x": {"layer": 4}}}, "sites.x.layer: 4, but the model has 4 layers (0 to 3)"),
        ({"context_length": 33}, "context_length: 33, but the model takes at most 32 tokens"),
        ({"context_length": 2}, "context_length: 2 leaves no room for text beside 2 special tokens"),
        ({"model": "./no/such/model"}, "model: no folder './no/such/model'"),
        (
            {"model": "package:no_such_package/model"},
            "model: no Python package 'no_such_package' is installed; "
            "pip install it or fix 'package:no_such_package/model'",
        ),
        ({"text": {"files": "no/such/*.txt"}}, "text.files: no file matches 'no/such/*.txt'"),
        (
            {"text": {"python": "no_such_module:topics"}},
            "text.python: cannot import 'no_such_module' (No module named 'no_such_module')",
        ),
        (
            {"output": "nowhere://bucket/x"},
            "url 'nowhere://bucket/x': no storage scheme is called 'nowhere'; use a path, file:// or s3://",
        ),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refusal(harvest_file(tmp_path, **changes)) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xe9x", "is not UTF-8 text (byte 0)"),
        (b"", "text: 1 documents with 0 characters; there is nothing to harvest"),
        (b" \n ", "text: its documents have no token but special ones; there is nothing to harvest"),
    ],
)
def test_text_without_rows(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    assert message in refusal(harvest_file(tmp_path, text={"files": str(tmp_path / "bad.txt")}))
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = harvest_file(tmp_path, model=str(folder))
    assert refusal(config).startswith(f"model: cannot load '{folder}' (")
    T5Config().save_pretrained(folder)
    assert refusal(config).startswith(f"model: cannot load '{folder}' (Error no file named model.s")
    BERT.save_pretrained(folder)
    assert refusal(config) == f"model: the tokenizer of '{folder}' knows no word of the text; is it complete?"
    save_tokenizer(folder, "[CLS] $A [SEP]")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    assert "describes 10,448 parameters, but the files of weights hold 11 bytes" in refusal(config)
    (folder / "model.safetensors").write_bytes(b"not tensors" * 1000)
    assert refusal(config).startswith(f"model: cannot load '{folder}' (")
    save_model(folder, BertConfig.from_dict(BERT.to_dict() | {"num_hidden_layers": 3}), "[CLS] $A [SEP]")
    BERT.save_pretrained(folder)
    assert "has no weights for encoder.layer.3." in refusal(config)
    save_model(folder, BERT, "[CLS] $A [SEP]")
    words = [f"w{i}" for i in range(40)]
    save_tokenizer(folder, "[CLS] $A [SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(99)), *words])
    assert refusal(config).startswith("model: document 0 holds token 103 ('w0'), but the embedding of ")
    assert not (tmp_path / "out").exists()


def test_values_that_the_dtype_cannot_hold_leave_nothing(tmp_path: Path) -> None:
    sites = {"start": {"hidden_state": 0}}
    loud = save_model(tmp_path / "loud", GPT2, "$A", lambda model: model.wte.weight.fill_(100_000))
    config = harvest_file(tmp_path, model=str(loud), sites=sites, dtype="float16")
    assert refusal(config) == "dtype: float16 cannot hold sites.start, which reaches 100,000; use bfloat16"
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    broken = save_model(tmp_path / "broken", GPT2, "$A", lambda model: model.wpe.weight[5].fill_(float("nan")))
    config = harvest_file(tmp_path, model=str(broken), sites=sites)
    assert refusal(config) == "sites.start: the model gives values that are not finite, computing in torch.float32"


def test_compute_dtype_and_attention_are_the_models(tmp_path: Path) -> None:
    half = harvest_file(tmp_path, compute_dtype="bfloat16", attention="eager")
    manifest, _ = harvest(half)
    assert manifest.provenance["run"]["compute_dtype"] == "bfloat16"
    exact = harvest_file(tmp_path, output=str(tmp_path / "exact"))
    expected = read_site(exact, harvest(exact)[0], "layer2")
    found = read_site(half, manifest, "layer2")
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = harvest_file(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert refusal(config) == "harvesting needs the transformers package; pip install -e '.[harvest]'"


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    config = harvest_file(tmp_path, output=str(tmp_path / "file" / "out"))
    assert refusal(config).startswith("output: cannot write to file://")


def test_too_little_memory_names_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore lines")

    monkeypatch.setattr("lexray.storage.harvest.model_reader.read_whole", no_memory)
    assert refusal(harvest_file(tmp_path)).startswith("batch_tokens: 24 tokens in one forward pass need more memory")
