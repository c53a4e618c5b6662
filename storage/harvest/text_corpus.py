"""A tokenized text corpus: tokenized before any model runs, so that the number of rows is known."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.harvest.frame import encode
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.language_model import ModelFacts, load_tokenizer, special_token_ids
from lexray.storage.harvest.pieces import PieceCutter, Pieces, PiecesBuilder, TokenPieces
from lexray.storage.harvest.replica import ReplicaFacts
from lexray.storage.harvest.text import TextMeter, read_documents

OnTokens = Callable[[int, int | None], None]
"""Called with the rows found so far and the maximum, None for all."""
_PIECES_PER_REPORT = 256


@dataclass(frozen=True, kw_only=True)
class TextCorpus:
    """Pieces of text, and the tokens that are stored as rows."""

    pieces: Pieces
    rows: np.ndarray
    """Rows of each piece (P)."""
    text: dict[str, Any]
    """Identity of the text, see `TextMeter`."""
    dropped_ids: tuple[int, ...]
    """Token ids that are not stored as rows."""
    special_ids: list[int]
    """Token ids of rows that do not represent text."""
    pad_id: int
    first_pieces: int
    """Number of pieces in the first batch, on which the models are tried."""
    framing: dict[str, int]
    """Non-zero counts of pieces that are cut differently because their text contains special tokens."""
    report: CorpusReport
    """Report of text that was replaced or left out on reading."""

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the identity of the corpus, for the dataset's provenance."""
        return {"text": self.text, **({"framing": self.framing} if self.framing else {})}

    def rows_of_pieces(self, facts: ReplicaFacts) -> np.ndarray:
        """Return the number of rows of each piece (P)."""
        return self.rows

    def select(self, numbers: np.ndarray) -> TokenPieces:
        """Return the pieces of these numbers for a `ShardTask`."""
        return self.pieces.select(numbers)


def read_text(config: HarvestFile, models: dict[str, ModelFacts], on_tokens: OnTokens) -> TextCorpus:
    """Cut the text into pieces, as many as `max_rows` needs. Raises UserError when no token becomes a row."""
    assert config.text is not None
    tokenizers = {field: _load_tokenizer(config, facts) for field, facts in models.items()}
    field, tokenizer = next(iter(tokenizers.items()))
    special_ids, by_text = special_token_ids(tokenizer), config.rows == "text"
    dropped = frozenset(special_ids if config.special_tokens == "drop" and not by_text else ())
    cutter = PieceCutter(
        tokenizer=tokenizer,
        context_length=config.context_length,
        context=config.context or ("truncate" if by_text else "split"),
    )
    markers = dropped.difference(tokenizer.all_special_ids)
    meter, builder, rows, total, seen = TextMeter(), PiecesBuilder(), array("q"), 0, set[int]()
    report = CorpusReport()
    documents = meter.pass_on(read_documents(config.text, config.storage, report))
    for piece in cutter.cut(_compared(documents, tokenizers)):
        builder.add(piece)
        rows.append(1 if by_text else sum(token not in dropped for token in piece.token_ids))
        total += rows[-1]
        if not markers.isdisjoint(piece.token_ids):
            report.add("marker_tokens", count=sum(token in markers for token in piece.token_ids))
        seen.update(piece.token_ids)
        if config.max_rows is not None and total >= config.max_rows:
            break
        if len(rows) % _PIECES_PER_REPORT == 0:
            on_tokens(total, config.max_rows)
    facts = meter.facts()
    report.add("own_frames", count=cutter.own_frames)
    if not total:
        raise UserError("text: its documents have no token but special ones; there is nothing to harvest")
    # transformers creates an empty tokenizer for a folder without one.
    if seen <= {*special_ids, tokenizer.unk_token_id}:
        raise UserError(f"{field}: the tokenizer of {models[field].name!r} knows no word of the text; is it complete?")
    pieces = builder.build()
    check_token_ids(pieces, tokenizer, models.values())
    return TextCorpus(
        pieces=pieces,
        rows=np.frombuffer(rows, dtype=np.int64),
        text=facts,
        dropped_ids=tuple(sorted(dropped)),
        special_ids=[] if by_text else special_ids,
        pad_id=choose_pad_id(tokenizer, models.values()),
        first_pieces=max(1, config.batch_tokens // config.context_length),
        framing=_framing(cutter, report),
        report=report,
    )


def _framing(cutter: PieceCutter, report: CorpusReport) -> dict[str, int]:
    counts = {
        "own_frames": cutter.own_frames,
        "shared_separators": cutter.shared_separators,
        "marker_tokens": report.counts.get("marker_tokens", 0),
    }
    return {kind: count for kind, count in counts.items() if count}


def measure(config: HarvestFile, documents: int | None) -> dict[str, Any]:
    """Return the facts of the text's first `documents` documents, or of all."""
    assert config.text is not None
    meter = TextMeter()
    for _ in meter.pass_on(islice(read_documents(config.text, config.storage), documents)):
        pass
    return meter.facts()


def too_long(config: HarvestFile, limit: int) -> UserError:
    return UserError(f"context_length: {config.context_length}, but the model takes at most {limit} tokens")


def _load_tokenizer(config: HarvestFile, facts: ModelFacts) -> Any:
    tokenizer = load_tokenizer(facts)
    if config.context_length > tokenizer.model_max_length:
        raise too_long(config, tokenizer.model_max_length)
    # Documents exceed the context and are cut later; silence the tokenizer's warning.
    tokenizer.model_max_length = int(1e30)
    return tokenizer


def _compared(documents: Iterable[str], tokenizers: dict[str, Any]) -> Iterator[str]:
    """Yield the documents. Raises UserError when two models tokenize one differently: rows would not be aligned."""
    (first_field, first), *others = tokenizers.items()
    others = [(field, other) for field, other in others if _saved(other) is None or _saved(other) != _saved(first)]
    for number, document in enumerate(documents):
        if others and document:
            wanted = encode(first, [document], add_special_tokens=True)[0]
            for field, other in others:
                found = encode(other, [document], add_special_tokens=True)[0]
                if found != wanted:
                    said = f"{first_field} and {field} see {_difference(wanted, found)} document {number}"
                    raise UserError(f"models: {said}; models of one dataset need the same tokenizer")
        yield document


def _saved(tokenizer: Any) -> str | None:
    """Return the serialised state that determines a tokenizer's ids; None when unavailable."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else str(backend.to_str())


def _difference(wanted: list[int], found: list[int]) -> str:
    place = next((i for i, pair in enumerate(zip(wanted, found, strict=False)) if pair[0] != pair[1]), None)
    if place is None:
        return f"{len(wanted)} and {len(found)} tokens in"
    return f"{wanted[place]} and {found[place]} as token {place} of"


def choose_pad_id(tokenizer: Any, models: Iterable[ModelFacts]) -> int:
    """An id to pad with that every model has a row for: the tokenizer's own if possible.

    Padding is masked, so any row does. Many tokenizers were given a [PAD] without their model being resized.
    """
    rows = [model.vocabulary for model in models if model.vocabulary is not None]
    wanted = [tokenizer.pad_token_id, tokenizer.eos_token_id, 0]
    return next(token for token in wanted if token is not None and all(0 <= token < count for count in rows))


def check_token_ids(pieces: Pieces, tokenizer: Any, models: Iterable[ModelFacts]) -> None:
    """Raise UserError naming the first token, and its document, that a model's embedding has no row for."""
    for model in models:
        if model.vocabulary is None or len(pieces) == 0 or int(pieces.token_ids.max()) < model.vocabulary:
            continue
        place = int(np.argmax(pieces.token_ids >= model.vocabulary))
        token = int(pieces.token_ids[place])
        document = pieces.document_numbers[np.searchsorted(pieces.document_starts, place, side="right") - 1]
        raise UserError(
            f"{model.field}: document {document} holds token {token} ({tokenizer.convert_ids_to_tokens(token)!r}), but "
            f"the embedding of {model.name!r} has {model.vocabulary} rows; "
            "give the tokenizer that the model was trained with, or a model that was resized for it"
        )
