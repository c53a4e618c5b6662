"""Texts that have special tokens of their own, as chat templates write them: framed once, stored as text alone."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from harvest_cases import WORDS, harvest_file, read_column, refusal, save_model, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

from lexray.storage.harvest import text_corpus
from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.harvest.harvest import harvest
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.language_model import special_token_ids
from lexray.storage.harvest.pieces import PieceCutter, PiecesBuilder

BOS, EOS, HEAD, TOOL = 2, 3, len(WORDS), len(WORDS) + 1
FRAMES = {"bos": "<s> $A", "both": "<s> $A </s>", "none": "$A", "eos": "$A </s>", "same": "</s> $A </s>"}


@cache
def chat_tokenizer(frame: str) -> Any:
    """With `<s>`, `</s>`, a chat marker that is special without a role, and one that is not special."""
    words = ["<pad>", "<unk>", "<s>", "</s>", *WORDS[4:]]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single=FRAMES[frame], special_tokens=[("<s>", BOS), ("</s>", EOS)])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "</s>" if frame == "same" else "<s>"}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **names)
    made.add_tokens([AddedToken("<|head|>", special=True, normalized=False)], special_tokens=True)
    made.add_tokens([AddedToken("<|tool|>", special=False, normalized=False)])
    assert made.convert_tokens_to_ids(["<|head|>", "<|tool|>"]) == [HEAD, TOOL]
    return made


def cut(frame: str, texts: list[str], context: Any = "split", context_length: int = 8) -> tuple[list[list[int]], int]:
    """Token ids of all pieces, and how many times a text had a frame of its own."""
    cutter = PieceCutter(tokenizer=chat_tokenizer(frame), context_length=context_length, context=context)
    return [piece.token_ids for piece in cutter.cut(texts)], cutter.own_frames


def w(*numbers: int) -> list[int]:
    return [4 + number for number in numbers]


@pytest.mark.parametrize(
    ("frame", "text", "pieces"),
    [
        ("bos", "<s> w1 w2", [[BOS, *w(1, 2)]]),
        ("bos", "<s> <s> w1", [[BOS, *w(1)]]),
        ("bos", "w1 <s> w2", [[BOS, *w(1), BOS, *w(2)]]),
        ("bos", "<s> w1 </s>", [[BOS, *w(1), EOS]]),
        ("both", "<s> w1 </s>", [[BOS, *w(1), EOS]]),
        ("both", "w1 </s>", [[BOS, *w(1), EOS]]),
        ("both", "<s>", []),
        ("both", "<s> </s>", []),
        ("both", "<|head|>", [[BOS, HEAD, EOS]]),
        ("eos", "w1 </s> </s>", [[*w(1), EOS]]),
        ("none", "<s> <s> w1 </s>", [[BOS, BOS, *w(1), EOS]]),
        ("same", "</s> w1 </s>", [[EOS, *w(1), EOS]]),
        ("bos", "<s> w1 w2 w3 w4 w5 w6 w7 <s> w8", [[BOS, *w(1, 2, 3, 4, 5, 6, 7)], [BOS, *w(8)]]),
    ],
)
def test_a_frame_of_the_text_is_not_added_again(frame: str, text: str, pieces: list[list[int]]) -> None:
    found, own = cut(frame, [text])
    assert found == pieces
    # Also where the frame had to be found from another text.
    assert cut(frame, ["w9", text])[0][1:] == pieces
    has_own = any(token in text.split() for token in FRAMES[frame].replace("$A", "").split())
    assert (own > 0) == (has_own and text != "w1 <s> w2")


def test_packed_documents_have_one_token_between_them() -> None:
    found, own = cut("both", ["<s> w1 </s>", "w2 </s>", "</s>", "</s> w3"], "pack", 32)
    assert found == [[BOS, *w(1), EOS, *w(2), EOS, *w(3), EOS]]
    assert own == 5
    ((ids,), own) = cut("none", ["w1 </s>", "w2"], "pack", 32)
    assert (ids, own) == ([*w(1), EOS, *w(2)], 1)


_TEXTS = st.lists(
    st.lists(st.sampled_from(["<s>", "</s>", "<|head|>", *(f"w{i}" for i in range(9))]), max_size=9).map(" ".join),
    max_size=6,
)


@given(
    texts=_TEXTS,
    frame=st.sampled_from(sorted(FRAMES)),
    context=st.sampled_from(["split", "truncate", "pack"]),
    length=st.integers(3, 9),
)
def test_no_frame_is_doubled_and_no_word_lost(texts: list[str], frame: str, context: Any, length: int) -> None:
    tokenizer = chat_tokenizer(frame)
    cutter, builder = PieceCutter(tokenizer=tokenizer, context_length=length, context=context), PiecesBuilder()
    framed = tokenizer("w1")["input_ids"]
    prefix, suffix = framed[: framed.index(5)], framed[framed.index(5) + 1 :]
    for piece in cutter.cut(texts):
        ids = piece.token_ids
        assert len(prefix) + len(suffix) < len(ids) <= length
        assert ids[: len(prefix)] == prefix
        assert ids[len(ids) - len(suffix) :] == suffix
        assert not prefix or ids[1] != prefix[0]
        assert not suffix or ids[-2] != suffix[0]
        builder.add(piece)
    pieces = builder.build()
    words = [(n, int(t[1:]) + 4) for n, text in enumerate(texts) for t in text.split() if t[0] == "w"]
    everything = pieces.select(range(len(pieces))) if len(pieces) else None
    found = [] if everything is None else zip(everything.documents.tolist(), everything.token_ids.tolist(), strict=True)
    kept = [(number, token) for number, token in found if token in range(4, HEAD)]
    if context == "truncate":
        for number, group in itertools.groupby(kept, key=lambda pair: pair[0]):
            mine = list(group)
            assert mine == [pair for pair in words if pair[0] == number][: len(mine)]
    else:
        assert kept == words


def test_special_tokens_are_all_that_the_tokenizer_marks_so(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("bos")
    tokenizer.save_pretrained(tmp_path)
    for found in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert special_token_ids(found) == [0, BOS, EOS, HEAD]  # the unknown token stands for a word


CHAT = "<s> <|head|> w1 <|head|> w2 w3 </s> <|head|> w4 <|tool|> w5 </s>"


def chat_file(tmp_path: Path, **changes: Any) -> HarvestFile:
    model = tmp_path / "model"
    if not model.exists():
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
        config = LlamaConfig(**sizes, vocab_size=TOOL + 1, num_hidden_layers=3, max_position_embeddings=64)
        save_model(model, config, "$A")
        chat_tokenizer("bos").save_pretrained(model)
        (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [CHAT, "w7", CHAT]))
    text = {"jsonl": str(tmp_path / "chat.jsonl")}
    return harvest_file(tmp_path, model=str(model), text=text, context_length=32, **changes)


def test_rows_of_chats_are_their_words(tmp_path: Path) -> None:
    config = chat_file(tmp_path)
    manifest, _ = harvest(config)
    words = [*w(1, 2, 3, 4), TOOL, *w(5)]
    assert read_column(config, manifest, "token_id").tolist() == words + w(7) + words
    assert read_column(config, manifest, "position").tolist()[:6] == [2, 4, 5, 8, 9, 10]
    assert manifest.provenance["corpus"] == {"own_frames": {"count": 2}, "marker_tokens": {"count": 6}}
    config = chat_file(tmp_path, special_tokens="keep", output=str(tmp_path / "kept"))
    manifest, _ = harvest(config)
    ids = read_column(config, manifest, "token_id").tolist()
    chat = chat_tokenizer("bos")(CHAT, add_special_tokens=False)["input_ids"]
    assert ids == [*chat, BOS, *w(7), *chat]
    assert manifest.special_token_ids == [0, BOS, EOS, HEAD]
    assert harvest(config)[1], "it is recognised"


class StopHereError(Exception):
    pass


def interrupt(config: HarvestFile) -> None:
    def on_progress(done: int, total: int) -> None:
        if done >= 6:
            raise StopHereError

    with pytest.raises(StopHereError):
        harvest(config, on_progress=on_progress)


def test_what_an_older_release_began_is_continued_only_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knew nothing of frames in texts, and reported nothing."""
    config = chat_file(tmp_path, shard_rows=4, batch_tokens=32)
    with monkeypatch.context() as older:
        older.setattr(text_corpus, "_framing", lambda *_: {})
        older.setattr(CorpusReport, "as_dict", lambda _: {})
        interrupt(config)
    assert refusal(config) == (
        f"framing.own_frames: 2, but the unfinished harvest in {config.output} was started with none; "
        "choose another output or remove that one"
    )
    (tmp_path / "plain.jsonl").write_text(
        '{"text": "w1 w2 w3 w4 w5 w6 w7 w8 w9"}\n{"text": null}\n{"text": "w2"}\n' * 2
    )
    plain = {"shard_rows": 4, "text": {"jsonl": str(tmp_path / "plain.jsonl")}, "model": str(tiny_model("bert"))}
    config = harvest_file(tmp_path, output=str(tmp_path / "plain"), **plain)
    with monkeypatch.context() as older:
        older.setattr(CorpusReport, "as_dict", lambda _: {})
        interrupt(config)
    manifest, reused = harvest(config)
    assert (manifest.rows, reused) == (20, False)
    new = harvest_file(tmp_path, output=str(tmp_path / "new"), **plain)
    made, _ = harvest(new)
    assert manifest.shards == made.shards
    assert made.provenance["corpus"]["missing_texts"]["count"] == 2
