"""Harvested rows are the model's own hidden states; a harvest is written whole, once, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import (
    AlbertConfig,
    AutoModel,
    BertConfig,
    CLIPConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
    T5Config,
)

from storage.config_file import read_config_file
from storage.errors import UserError
from storage.harvest import harvest
from storage.harvest_file import HarvestFile
from storage.hidden_states import HiddenStateReader, choose_reader, pad, read_whole
from storage.manifest import Manifest
from storage.reader import DatasetReader
from storage.store import Store
from storage.writer import DatasetWriter

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"w{i}" for i in range(40))]
DOCUMENTS = [
    " ".join(f"w{i % 40}" for i in range(23)),
    "",
    "w1 w2",
    "w5 rare w7",
    " ".join(f"w{i * 7 % 40}" for i in range(17)),
]
SIZES: dict[str, Any] = {"vocab_size": len(WORDS), "hidden_size": 16, "num_attention_heads": 2, "pad_token_id": 0}
BERT = BertConfig(**SIZES, num_hidden_layers=4, intermediate_size=32, max_position_embeddings=32)
GPT2 = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=4, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3)
LLAMA = LlamaConfig(**SIZES, num_hidden_layers=4, intermediate_size=32, max_position_embeddings=32)
# Its layers share one set of weights, so there is no list of four to stop in front of.
ALBERT = AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=4, intermediate_size=32, max_position_embeddings=32)


def save_tokenizer(folder: Path, template: str, words: list[str] = WORDS) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_model(folder: Path, config: Any, template: str, change: Callable[[Any], None] = lambda model: None) -> Path:
    torch.manual_seed(0)
    model = AutoModel.from_config(config)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    save_tokenizer(folder, template)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    framed = {"bert": BERT, "albert": ALBERT}
    folders = {name: save_model(root / name, config, "[CLS] $A [SEP]") for name, config in framed.items()}
    folders["gpt2"] = save_model(root / "gpt2", GPT2, "$A")
    folders["llama"] = save_model(root / "llama", LLAMA, "[CLS] $A")
    return folders


@pytest.fixture
def make(tmp_path: Path, models: dict[str, Path]) -> Callable[..., HarvestFile]:
    """A harvest file over five documents and the tiny BERT, with what a test changes."""
    folder = tmp_path / "text"
    folder.mkdir()
    for index, document in enumerate(DOCUMENTS):
        (folder / f"{index}.txt").write_text(document)

    def build(**changes: Any) -> HarvestFile:
        settings: dict[str, Any] = {
            "output": str(tmp_path / "out"),
            "model": str(models["bert"]),
            "sites": {"layer2": {"hidden_state": 2}},
            "text": {"files": str(folder / "*.txt")},
            "context_length": 8,
            "batch_texts": 3,
            "chunk_rows": 4,
            "shard_rows": 16,
        }
        return HarvestFile.model_validate(settings | changes)

    return build


def read_site(config: HarvestFile, manifest: Manifest, site: str) -> torch.Tensor:
    reader = DatasetReader(Store.at(config.output), manifest)
    rows = torch.from_numpy(np.concatenate([reader.read_chunk(i, site) for i in range(len(reader.chunks))]))
    return rows.view(torch.bfloat16) if manifest.sites[site].dtype == "bfloat16" else rows


def read_column(config: HarvestFile, manifest: Manifest, column: str) -> list[int]:
    reader = DatasetReader(Store.at(config.output), manifest)
    return [int(value) for part in reader.read_column(column) for value in part]


def expected_rows(frame: tuple[list[int], list[int]], context_length: int) -> list[tuple[int, list[int]]]:
    """(document, ids of a piece with its frame), cut by hand."""
    room, pieces = context_length - len(frame[0]) - len(frame[1]), []
    for number, document in enumerate(DOCUMENTS):
        ids = [WORDS.index(word) if word in WORDS else 1 for word in document.split()]
        pieces += [(number, frame[0] + ids[i : i + room] + frame[1]) for i in range(0, len(ids), room)]
    return pieces


@pytest.mark.parametrize(
    ("name", "frame"), [("bert", ([2], [3])), ("gpt2", ([], [])), ("llama", ([2], [])), ("albert", ([2], [3]))]
)
def test_rows_are_the_hidden_states_of_the_whole_model(
    name: str, frame: tuple[list[int], list[int]], make: Callable[..., HarvestFile], models: dict[str, Path]
) -> None:
    sites = {f"h{i}": {"hidden_state": i} for i in (0, 1, 3)}
    config = make(model=str(models[name]), sites=sites, dtype="float32")
    manifest, reused = harvest(config)
    assert not reused
    model = AutoModel.from_pretrained(models[name]).eval()
    columns: dict[str, list[int]] = {"token_id": [], "position": [], "document": []}
    vectors: dict[str, list[torch.Tensor]] = {site: [] for site in sites}
    for document, ids in expected_rows(frame, config.context_length):
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
        assert read_column(config, manifest, column) == values
    for site in sites:
        # Padding to a batch changes the order of additions, not more.
        torch.testing.assert_close(read_site(config, manifest, site), torch.cat(vectors[site]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("wanted", [{0}, {1, 3}, {0, 2}])
def test_stopping_early_changes_no_bit(name: str, wanted: set[int], models: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(models[name]).eval()
    run: list[str] = []
    layers = model.get_submodule({"bert": "encoder.layer", "gpt2": "h", "llama": "layers"}[name])
    first = [np.array([2, 5, 6, 3], np.int32), np.array([2, 7, 3], np.int32)]
    reader = choose_reader(model, num_layers=4, wanted=frozenset(wanted), pad_id=0, first=first)
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: run.append(number))
    other = [np.arange(4, 20, dtype=np.int32), np.array([9, 8], np.int32), np.array([2], np.int32)]
    early = reader.read(other)
    assert run == list(range(max(wanted)))
    batch = pad(other, 0, "cpu")
    whole = read_whole(model, frozenset(wanted), batch)
    for number in wanted:
        assert torch.equal(early[number][batch.mask.bool()], whole[number][batch.mask.bool()])


def test_a_model_that_cannot_stop_early_is_run_whole(models: dict[str, Path]) -> None:
    model = AutoModel.from_pretrained(models["bert"]).eval()
    first = [np.array([2, 5, 3], np.int32)]

    def reader(wanted: int) -> HiddenStateReader:
        return choose_reader(model, num_layers=4, wanted=frozenset({wanted}), pad_id=0, first=first)

    assert reader(3).layers is not None
    assert reader(4).layers is None
    # A layer that is fed something other than what the model reports.
    model.encoder.layer[2].register_forward_pre_hook(lambda module, args: (args[0] + 1, *args[1:]), prepend=True)
    assert reader(2).layers is None


def test_the_last_hidden_state_has_the_final_norm(make: Callable[..., HarvestFile], models: dict[str, Path]) -> None:
    config = make(model=str(models["llama"]), sites={"end": {"hidden_state": 4}}, dtype="float32")
    manifest, _ = harvest(config)
    # 16 values of mean square 1, but for the epsilon of the norm; without the norm it would be below 1.
    assert manifest.sites["end"].mean_squared_norm == pytest.approx(16, rel=1e-2)


def test_rounding_statistics_and_words(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    config, exact = make(), make(output=str(tmp_path / "exact"), dtype="float32")
    manifest, _ = harvest(config)
    stored = read_site(config, manifest, "layer2")
    assert torch.equal(stored, read_site(exact, harvest(exact)[0], "layer2").bfloat16())
    site = manifest.sites["layer2"]
    rows = stored.double().numpy()
    assert (site.width, site.dtype, site.source) == (16, "bfloat16", "hidden state after layer 2")
    np.testing.assert_allclose(site.mean, rows.mean(0), rtol=1e-12, atol=1e-15)
    assert site.mean_squared_norm == pytest.approx((rows**2).sum(1).mean(), rel=1e-12)
    assert [shard.rows for shard in manifest.shards] == [16, 16, 13]
    assert manifest.special_token_ids == [0, 2, 3]
    assert {"torch", "transformers", "compute_dtype"} <= manifest.provenance["run"].keys()
    assert 1 in read_column(config, manifest, "token_id"), "an unknown word is text"


def test_kept_special_tokens_can_be_filtered_later(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    dropped, kept = make(), make(output=str(tmp_path / "kept"), special_tokens="keep")
    manifest, _ = harvest(kept)
    ids = np.array(read_column(kept, manifest, "token_id"))
    text = ~np.isin(ids, manifest.special_token_ids)
    assert len(ids) == 45 + 2 * len(expected_rows(([2], [3]), 8))
    assert torch.equal(
        read_site(kept, manifest, "layer2")[torch.from_numpy(text)], read_site(dropped, harvest(dropped)[0], "layer2")
    )


@pytest.mark.parametrize("max_rows", [1, 6, 20, 45, 1000])
def test_max_rows_is_exact_and_progress_reaches_it(
    max_rows: int, make: Callable[..., HarvestFile], tmp_path: Path
) -> None:
    whole, part = make(), make(output=str(tmp_path / "part"), max_rows=max_rows)
    seen: list[tuple[int, int]] = []
    manifest, _ = harvest(part, on_progress=lambda done, total: seen.append((done, total)))
    rows = min(max_rows, 45)
    assert manifest.rows == rows
    assert seen[0] == (0, rows)
    assert seen[-1] == (rows, rows)
    assert seen == sorted(seen)
    # The last batch may hold fewer pieces, hence other padding: a value may round to its neighbour.
    torch.testing.assert_close(
        read_site(part, manifest, "layer2"), read_site(whole, harvest(whole)[0], "layer2")[:rows], rtol=0.01, atol=1e-4
    )


def test_text_and_model_of_installed_packages(
    make: Callable[..., HarvestFile], tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "lexray_test_package"
    shutil.copytree(models["bert"], package / "model")
    (package / "__init__.py").write_text(f"pages = {dict(enumerate(DOCUMENTS))!r}\nnumbers = [1, 2]\none = 'x'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from_files = harvest(make())[0]
    changes = {"model": "package:lexray_test_package/model", "text": {"python": "lexray_test_package:pages"}}
    assert harvest(make(output=str(tmp_path / "b"), **changes))[0].id == from_files.id
    for attribute, message in {
        "none": "text.python: module 'lexray_test_package' has no 'none'",
        "numbers": "text.python: lexray_test_package:numbers entry 0 is a int, expected a string",
        "one": "text.python: lexray_test_package:one is a str, expected a list or dict of strings",
    }.items():
        config = make(output=str(tmp_path / "c"), text={"python": f"lexray_test_package:{attribute}"})
        assert refusal(config) == message
    config = make(output=str(tmp_path / "c"), model="package:lexray_test_package/nothing")
    assert refusal(config) == "model: the Python package 'lexray_test_package' has no folder 'nothing'"


def test_the_same_harvest_is_used_again(make: Callable[..., HarvestFile]) -> None:
    config = make()
    first, _ = harvest(config)
    before = {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")}
    again, reused = harvest(make(batch_texts=7))
    assert reused
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in Path(config.output).rglob("*")} == before
    (Path(config.output) / first.shards[1].file).unlink()
    assert "shards/000001.safetensors is missing" in refusal(config)


def test_another_harvest_is_never_overwritten(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    harvest(make())
    out = tmp_path / "out"
    end = f"the dataset in {out} was harvested with"
    rest = "; choose another output or remove that one"
    assert refusal(make(context_length=9)) == f"context_length: 9, but {end} 8{rest}"
    assert refusal(make(max_rows=3)) == f"max_rows: 3, but {end} none{rest}"
    moved = make(sites={"layer2": {"hidden_state": 1}})
    assert refusal(moved) == f"sites.layer2.hidden_state: 1, but {end} 2{rest}"
    renamed = make(sites={"layer2": {"hidden_state": 2}, "x": {"hidden_state": 1}})
    assert refusal(renamed) == f"sites.x.hidden_state: 1, but {end} none{rest}"
    (tmp_path / "text" / "2.txt").write_text("w1 w3")
    assert refusal(make()).startswith("text.sha256: ")
    (tmp_path / "text" / "9.txt").write_text("w3")
    assert refusal(make()) == f"text.documents: 6, but {end} 5{rest}"


def test_other_weights_are_another_harvest(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", BERT, "[CLS] $A [SEP]")
    config = make(model=str(folder))
    harvest(config)
    save_model(folder, BERT, "[CLS] $A [SEP]", lambda model: model.encoder.layer[0].output.dense.weight.mul_(2))
    assert refusal(config).startswith("model.fingerprint: ")


def test_a_dataset_of_another_origin_is_refused(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    config = make()
    writer = DatasetWriter(store=Store.at(config.output), sites={"x": 2})
    column = np.zeros(3, np.int32)
    writer.add({"x": torch.ones(3, 2)}, {"token_id": column, "position": column, "document": column})
    writer.close()
    assert refusal(config) == (
        f"output: {tmp_path / 'out'} holds a dataset that was not harvested by lexray; choose another output"
    )


def refusal(config: HarvestFile) -> str:
    """The one line that a harvest is refused with."""
    with pytest.raises(UserError) as caught:
        harvest(config)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sites": {"layer9": {"hidden_state": 9}}},
            "sites.layer9.hidden_state: 9, but the model has 4 layers (0 to 4)",
        ),
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
def test_what_cannot_be_done_is_told_in_one_line(
    changes: dict[str, Any], message: str, make: Callable[..., HarvestFile], tmp_path: Path
) -> None:
    assert refusal(make(**changes)) == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        (b"", "text: 1 documents with 0 characters; there is nothing to harvest"),
        (b" \n ", "text: its documents have no token but special ones; there is nothing to harvest"),
    ],
)
def test_text_without_rows(content: bytes, message: str, make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    assert message in refusal(make(text={"files": str(tmp_path / "bad.txt")}))
    assert not (tmp_path / "out").exists()


def test_models_that_cannot_be_read(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = make(model=str(folder))
    assert refusal(config).startswith(f"model: cannot load '{folder}' (")
    T5Config().save_pretrained(folder)
    assert "is an encoder-decoder; choose an encoder or a causal" in refusal(config)
    CLIPConfig().save_pretrained(folder)
    assert "has no num_hidden_layers; choose a language model" in refusal(config)
    BERT.save_pretrained(folder)
    assert refusal(config) == f"model: the tokenizer of '{folder}' knows no word of the text; is it complete?"
    save_tokenizer(folder, "[CLS] $A [SEP]")
    (folder / "model.safetensors").write_bytes(b"not tensors")
    assert refusal(config).startswith(f"model: cannot load '{folder}' (")
    save_model(folder, BertConfig.from_dict(BERT.to_dict() | {"num_hidden_layers": 3}), "[CLS] $A [SEP]")
    BERT.save_pretrained(folder)
    assert "has no weights for encoder.layer.3." in refusal(config)
    save_model(folder, BERT, "[CLS] $A [SEP]")
    save_tokenizer(folder, "[CLS] $A [SEP]", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(99)), *WORDS[4:]])
    assert refusal(config).startswith(f"model: '{folder}' cannot be run on the text (")
    assert not (tmp_path / "out").exists()


def test_values_that_the_dtype_cannot_hold(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    sites = {"start": {"hidden_state": 0}}
    loud = save_model(tmp_path / "loud", GPT2, "$A", lambda model: model.wte.weight.fill_(100_000))
    config = make(model=str(loud), sites=sites, dtype="float16")
    assert refusal(config) == "dtype: float16 cannot hold sites.start, which reaches 100,000; use bfloat16"
    broken = save_model(tmp_path / "broken", GPT2, "$A", lambda model: model.wpe.weight[5].fill_(float("nan")))
    config = make(model=str(broken), sites=sites)
    assert refusal(config) == "sites.start: the model gives values that are not finite, computing in torch.float32"


def test_without_transformers(make: Callable[..., HarvestFile], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert refusal(make()) == "harvesting needs the transformers package; pip install -e '.[harvest]'"


def test_an_output_that_cannot_be_written(make: Callable[..., HarvestFile], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert refusal(make(output=str(tmp_path / "file" / "out"))).startswith("output: cannot write to file://")


def test_a_failed_write_leaves_no_shard(
    make: Callable[..., HarvestFile], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write

    def full_disk(store: Store, path: str, data: bytes) -> None:
        if "000002" in path:
            raise OSError(28, "No space left on device")
        write(store, path, data)

    monkeypatch.setattr(Store, "write", full_disk)
    expected = f"output: cannot write to file://{tmp_path / 'out'} (No space left on device); choose another place"
    assert refusal(make()) == expected
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_an_interrupted_harvest_leaves_no_shard_and_can_be_repeated(
    make: Callable[..., HarvestFile], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int) -> None:
        if done > 20:
            assert list((tmp_path / "out" / "shards").iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(make(), on_progress=interrupt)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert harvest(make())[0].rows == 45


def test_too_little_memory_names_the_setting(make: Callable[..., HarvestFile], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore lines")

    monkeypatch.setattr("storage.hidden_states.read_whole", no_memory)
    assert refusal(make()).startswith("batch_texts: 3 pieces of up to 8 tokens need more memory than the device has")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("contxt_length: 3", "contxt_length: unknown key; did you mean 'context_length'?"),
        ("shard_rows: 100", "shard_rows 100 is not a multiple of chunk_rows 1024"),
        ("sites: {position: {hidden_state: 1}}", "sites: 'position' is the name of a column"),
        ("sites: {a b: {hidden_state: 1}}", "sites: 'a b' cannot name a site; use letters, digits, _, - and ."),
        ("sites: {a: {hidden_state: -1}}", "sites.a.hidden_state: input should be greater than or equal to 0, got -1"),
        ("text: {}", "text: give one of python (`module:attribute`) and files (a path or glob)"),
        ("text: {python: 'a:b', files: c}", "text: give one of python (`module:attribute`) and files"),
        ("text: {python: 'a b'}", "text.python: "),
        ("storage: {region: x, addressing_style: odd}", "storage.addressing_style: "),
    ],
)
def test_mistakes_in_the_file_name_the_field(line: str, message: str, tmp_path: Path) -> None:
    base = {"output": "out", "model": "m", "sites": "{a: {hidden_state: 1}}", "text": "{files: x}"}
    base.pop(line.split(":")[0], None)
    path = tmp_path / "harvest.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in base.items()) + line)
    with pytest.raises(UserError) as caught:
        read_config_file(str(path), HarvestFile)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_the_quickstart_file_is_valid_and_storage_settings_pass_through() -> None:
    config = read_config_file("examples/quickstart/harvest.yaml", HarvestFile)
    assert config.sites["layer3"].hidden_state == 3
    block = {"endpoint_url": "http://x", "region": "r", "addressing_style": "path"}
    changed = HarvestFile.model_validate(config.model_dump() | {"storage": block})
    assert changed.storage.settings.endpoint_url == "http://x"
    assert changed.settings == config.settings
