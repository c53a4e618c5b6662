"""The same documents from any source give the same rows; contexts and pooled texts are what they say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from harvest_cases import (
    DOCUMENTS,
    FRAMES,
    WORDS,
    expected_pieces,
    harvest_file,
    read_column,
    read_site,
    refusal,
    tiny_model,
)
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import TextChoice
from lexray.storage.harvest.pieces import PieceCutter, PiecesBuilder
from lexray.storage.harvest.text import read_documents
from lexray.storage.objects.settings import StorageSettings
from lexray.storage.store import Store


def write_tables(folder: Path) -> None:
    """The five documents as parquet (two files, small row groups) and JSON lines (one of them packed)."""
    folder.mkdir()
    pq.write_table(pa.table({"id": [0, 1, 2], "body": DOCUMENTS[:3]}), folder / "a.parquet", row_group_size=2)
    pq.write_table(pa.table({"id": [3, 4], "body": DOCUMENTS[3:]}), folder / "b.parquet")
    lines = [json.dumps({"body": document, "id": i}) + "\n" for i, document in enumerate(DOCUMENTS)]
    (folder / "a.jsonl").write_text("".join(lines[:3]) + "\n")
    with gzip.open(folder / "b.jsonl.gz", "wt") as file:
        file.writelines(lines[3:])


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        "parquet": {"parquet": f"{folder}/*.parquet", "column": "body"},
        "url": {"parquet": f"file://{folder}/*.parquet", "column": "body"},
        "jsonl": {"jsonl": f"{folder}/*.jsonl*", "column": "body"},
    }


def test_every_source_gives_the_same_rows(tmp_path: Path) -> None:
    expected = harvest(harvest_file(tmp_path))[0].id
    write_tables(tmp_path / "tables")
    for name, text in sources(tmp_path / "tables").items():
        config = harvest_file(tmp_path, output=str(tmp_path / f"out-{name}"), text=text)
        assert harvest(config)[0].id == expected, name
        assert harvest(config)[1], "a corpus is recognised"


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_folder_gives_the_same_rows(streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": DOCUMENTS}), tmp_path / "data" / "train.parquet")
    text = {"dataset": str(tmp_path / "data"), "split": "train", "streaming": streaming}
    config = harvest_file(tmp_path, output=str(tmp_path / "b"), text=text)
    assert harvest(config)[0].id == harvest(harvest_file(tmp_path))[0].id
    wrong = harvest_file(tmp_path, output=str(tmp_path / "c"), text=text | {"column": "txt"})
    assert refusal(wrong) == f"text.dataset: {tmp_path / 'data'} has no column 'txt'; did you mean 'text'?"
    wrong = harvest_file(tmp_path, output=str(tmp_path / "c"), text=text | {"split": "tes"})
    assert refusal(wrong).startswith(f"text.dataset: cannot read {tmp_path / 'data'} (")


def test_a_dataset_that_was_saved_to_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    made = datasets.Dataset.from_dict({"text": ["a", None, "b"]})
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "train [v1]" / "train.parquet")
    for streaming in (True, False):
        choice = TextChoice(dataset=str(tmp_path / "saved"), streaming=streaming)
        assert list(read_documents(choice, StorageSettings())) == ["a", "", "b"]
        choice = TextChoice(dataset=str(tmp_path / "train [v1]"), streaming=streaming)
        with pytest.raises(
            UserError, match=r"the datasets library takes \*, \? and \[ in a folder's name for a pattern"
        ):
            list(read_documents(choice, StorageSettings()))


def test_text_behind_s3(tmp_path: Path, s3_server: str) -> None:
    block = {"endpoint_url": s3_server}
    store = Store.at("s3://harvest-corpora", StorageSettings(**block))
    store.filesystem.mkdir("harvest-corpora")
    write_tables(tmp_path / "tables")
    for path in (tmp_path / "tables").iterdir():
        store.write(f"in/{path.name}", path.read_bytes())
    expected = harvest(harvest_file(tmp_path))[0].id
    for name, text in sources(Path("/in")).items():
        if name == "url":
            continue
        (kind, pattern), column = next(iter(text.items())), text["column"]
        config = harvest_file(
            tmp_path,
            output=f"s3://harvest-corpora/out-{name}",
            text={kind: f"s3://harvest-corpora{pattern}", "column": column},
            storage=block,
        )
        assert harvest(config)[0].id == expected
        assert store.list_folders(f"out-{name}") == ["shards"], "no journal is left"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"parquet": "a.parquet", "column": "bod"}, "a.parquet has no column 'bod'; did you mean 'body'?"),
        ({"parquet": "a.parquet", "column": "id"}, "a.parquet row 0: 'id' is a int, expected a string"),
        ({"parquet": "a.jsonl"}, "a.jsonl is not a parquet file that can be read ("),
        ({"jsonl": "a.jsonl", "column": "bod"}, "a.jsonl has no key 'bod'; did you mean 'body'?"),
        ({"jsonl": "a.jsonl", "column": "id"}, "a.jsonl line 1: 'id' is a int, expected a string"),
        ({"jsonl": "bad.jsonl"}, "bad.jsonl line 1 is not JSON"),
        ({"jsonl": "list.jsonl"}, "list.jsonl line 1 is no object with a key 'text'"),
        ({"jsonl": "none.jsonl"}, "text.jsonl: no file matches "),
    ],
)
def test_tables_that_cannot_be_read(text: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    write_tables(folder)
    (folder / "bad.jsonl").write_text("{not json\n")
    (folder / "list.jsonl").write_text("[1]\n")
    kind, name = next(iter(text.items()))
    found = refusal(harvest_file(tmp_path, text=text | {kind: str(folder / name)}))
    assert found.startswith(f"text.{kind}: ")
    assert message in found
    assert not (tmp_path / "out").exists()


def test_missing_values_are_empty_documents(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "x.parquet")
    choice = TextChoice(parquet=str(tmp_path / "x.parquet"))
    assert list(read_documents(choice, StorageSettings())) == ["a", "", "b"]


def test_without_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    config = harvest_file(tmp_path, text={"dataset": "some/where"})
    assert refusal(config) == ("reading a Hugging Face dataset needs the datasets package; pip install -e '.[corpora]'")


def test_truncation_keeps_the_first_piece_of_each_document(tmp_path: Path) -> None:
    config = harvest_file(tmp_path, context="truncate")
    manifest, _ = harvest(config)
    firsts = dict(reversed(expected_pieces(([2], [3]), 8)))
    expected = [(number, token) for number in sorted(firsts) for token in firsts[number][1:-1]]
    found = zip(read_column(config, manifest, "document"), read_column(config, manifest, "token_id"), strict=True)
    assert list(found) == expected


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_packing_fills_contexts_and_keeps_whose_tokens_they_are(name: str, tmp_path: Path) -> None:
    config = harvest_file(tmp_path, model=str(tiny_model(name)), context="pack", special_tokens="keep", dtype="float32")
    if name == "gpt2":  # its tokenizer here has no end token; the separator takes its place
        assert AutoTokenizer.from_pretrained(tiny_model(name)).eos_token_id is None
    manifest, _ = harvest(config)
    prefix, suffix = FRAMES[name]
    stream = [(n, t) for n, ids in expected_pieces(([], []), 10**6) for t in [*ids, 3]][:-1]
    room = 8 - len(prefix) - len(suffix)
    pieces = [stream[i : i + room] for i in range(0, len(stream), room)]
    pieces = [piece[:-1] if piece[-1][1] in suffix else piece for piece in pieces]  # cut behind a separator
    framed = [[(p[0][0], t) for t in prefix] + p + [(p[-1][0], t) for t in suffix] for p in pieces]
    documents, ids = read_column(config, manifest, "document"), read_column(config, manifest, "token_id")
    assert list(zip(documents.tolist(), ids.tolist(), strict=True)) == [row for piece in framed for row in piece]
    assert read_column(config, manifest, "position").tolist() == [i for piece in framed for i in range(len(piece))]
    model, vectors = AutoModel.from_pretrained(tiny_model(name)).eval(), []
    for piece in framed:
        with torch.no_grad():
            output = model(input_ids=torch.tensor([[t for _, t in piece]]), output_hidden_states=True)
        vectors.append(output.hidden_states[2][0])
    torch.testing.assert_close(read_site(config, manifest, "layer2"), torch.cat(vectors), rtol=0, atol=2e-6)


@given(
    documents=st.lists(st.integers(0, 30), max_size=12),
    context_length=st.integers(3, 9),
    context=st.sampled_from(["split", "truncate", "pack"]),
)
def test_cut_pieces_hold_every_token_in_order(documents: list[int], context_length: int, context: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))
    tokens = [[4 + (7 * n + i) % 40 for i in range(count)] for n, count in enumerate(documents)]
    texts = [" ".join(WORDS[t] for t in ids) for ids in tokens]
    builder = PiecesBuilder()
    for piece in PieceCutter(tokenizer=tokenizer, context_length=context_length, context=context).cut(texts):
        assert 2 < len(piece.token_ids) <= context_length
        builder.add(piece)
    pieces = builder.build()
    if not len(pieces):
        assert not any(documents)
        return
    everything = pieces.select(np.arange(len(pieces)))
    assert np.array_equal(everything.token_ids, pieces.token_ids)
    real = everything.token_ids > 3
    found = list(zip(everything.documents[real].tolist(), everything.token_ids[real].tolist(), strict=True))
    most = context_length - 2 if context == "truncate" else None
    assert found == [(n, t) for n, ids in enumerate(tokens) for t in ids[:most]]
    backwards = np.arange(len(pieces))[::-1]
    for number, ids in zip(backwards, pieces.select(backwards).ids(np.arange(len(pieces))), strict=True):
        assert ids.tolist() == pieces.select(np.array([number])).token_ids.tolist()


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooled_texts(pooling: str, tmp_path: Path) -> None:
    config = harvest_file(tmp_path, rows="text", pooling=pooling, dtype="float32")
    manifest, _ = harvest(config)
    model = AutoModel.from_pretrained(tiny_model("bert")).eval()
    firsts = dict(reversed(expected_pieces(([2], [3]), 8)))
    expected = []
    for number in sorted(firsts):
        with torch.no_grad():
            x_TD = model(input_ids=torch.tensor([firsts[number]]), output_hidden_states=True).hidden_states[2][0]
        expected.append({"mean": x_TD.mean(0), "cls": x_TD[0], "last": x_TD[-1]}[pooling])
    torch.testing.assert_close(read_site(config, manifest, "layer2"), torch.stack(expected), rtol=0, atol=2e-6)
    assert read_column(config, manifest, "document").tolist() == [0, 2, 3, 4]
    assert set(read_column(config, manifest, "token_id")) == {-1}
    assert set(read_column(config, manifest, "position")) == {0}
    assert manifest.special_token_ids == []


def test_mean_pooling_is_that_of_sentence_transformers(tmp_path: Path) -> None:
    pooling = pytest.importorskip("sentence_transformers.models").Pooling(16)
    config = harvest_file(tmp_path, rows="text", dtype="float32", sites={"end": {"hidden_state": 4}}, context_length=32)
    manifest, _ = harvest(config)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("bert"))
    batch = tokenizer([text for text in DOCUMENTS if text], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = AutoModel.from_pretrained(tiny_model("bert")).eval()(**batch).last_hidden_state
    features = {"token_embeddings": states, "attention_mask": batch["attention_mask"]}
    expected = pooling(features)["sentence_embedding"]
    torch.testing.assert_close(read_site(config, manifest, "end"), expected, rtol=0, atol=2e-6)
