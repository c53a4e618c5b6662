"""Tiny models with random weights, a text of five documents, and what a harvest of them should hold."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
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
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.manifest import Manifest
from lexray.storage.reader import DatasetReader
from lexray.storage.store import Store

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
FRAMES: dict[str, tuple[list[int], list[int]]] = {
    "bert": ([2], [3]),
    "gpt2": ([], []),
    "llama": ([2], []),
    "albert": ([2], [3]),
}
TEMPLATES = {"bert": "[CLS] $A [SEP]", "gpt2": "$A", "llama": "[CLS] $A", "albert": "[CLS] $A [SEP]"}
CONFIGS = {"bert": BERT, "gpt2": GPT2, "llama": LLAMA, "albert": ALBERT}


def save_tokenizer(folder: Path, template: str, words: list[str] = WORDS) -> None:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def save_model(
    folder: Path, config: Any, template: str, change: Callable[[Any], None] = lambda model: None, *, seed: int = 0
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    save_tokenizer(folder, template)
    return folder


@cache
def temporary_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lexray-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def tiny_model(name: str) -> Path:
    """Folder of a model with its tokenizer."""
    return save_model(temporary_folder() / name, CONFIGS[name], TEMPLATES[name])


@cache
def causal_model(name: str) -> str:
    """Folder of a model with the head that predicts next tokens, and its tokenizer."""
    folder = temporary_folder() / f"{name}-with-head"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[name])
    for parameter in model.parameters():  # as they are made, all tokens are nearly as likely
        parameter.data.mul_(4)
    model.save_pretrained(folder)
    save_tokenizer(folder, TEMPLATES[name])
    return str(folder)


def write_text(folder: Path, documents: list[str] = DOCUMENTS) -> str:
    """A file for each document; gives their glob."""
    folder.mkdir(exist_ok=True)
    for index, document in enumerate(documents):
        (folder / f"{index:04d}.txt").write_text(document)
    return str(folder / "*.txt")


def harvest_file(tmp_path: Path, **changes: Any) -> HarvestFile:
    """Of the five documents and the tiny BERT in the order of the text, with what a test changes; None leaves out."""
    settings: dict[str, Any] = {
        "output": str(tmp_path / "out"),
        "model": str(tiny_model("bert")),
        "sites": {"layer2": {"hidden_state": 2}},
        "text": {"files": write_text(tmp_path / "text")},
        "context_length": 8,
        "batch_tokens": 24,
        "spread": False,
        "chunk_rows": 4,
        "shard_rows": 16,
    }
    return HarvestFile.model_validate({k: v for k, v in (settings | changes).items() if v is not None})


def read_site(config: HarvestFile, manifest: Manifest, site: str) -> torch.Tensor:
    reader = DatasetReader(Store.at(config.output), manifest)
    rows = torch.from_numpy(np.concatenate([reader.read_chunk(i, site) for i in range(len(reader.chunks))]))
    return rows.view(torch.bfloat16) if manifest.sites[site].dtype == "bfloat16" else rows


def read_column(config: HarvestFile, manifest: Manifest, column: str) -> np.ndarray:
    reader = DatasetReader(Store.at(config.output), manifest)
    return np.concatenate([np.asarray(part) for part in reader.column_parts(column)])


def files_of(folder: str | Path) -> dict[str, bytes]:
    """Every file below the folder, by its path there."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def expected_pieces(
    frame: tuple[list[int], list[int]], context_length: int, documents: list[str] = DOCUMENTS
) -> list[tuple[int, list[int]]]:
    """(document, ids of a piece with its frame), cut by hand."""
    room, pieces = context_length - len(frame[0]) - len(frame[1]), []
    for number, document in enumerate(documents):
        ids = [WORDS.index(word) if word in WORDS else 1 for word in document.split()]
        pieces += [(number, frame[0] + ids[i : i + room] + frame[1]) for i in range(0, len(ids), room)]
    return pieces


def refusal(config: HarvestFile) -> str:
    """The one line that a harvest is refused with."""
    with pytest.raises(UserError) as caught:
        harvest(config)
    message = str(caught.value)
    assert "\n" not in message
    return message
