"""Harvest: run a model over a text once and store its hidden states as a dataset.

Everything is tokenized first, so the number of rows is known before the model runs. Rows lie in the order of documents
and positions. A harvest that is already there, made with the same settings from the same model and text, is used again.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from storage.errors import UserError
from storage.harvest_file import HarvestFile
from storage.hidden_states import HiddenStateReader, choose_reader
from storage.language_model import ModelFacts, inspect_model, load_model, load_tokenizer, special_token_ids
from storage.manifest import MANIFEST, Manifest, load_manifest
from storage.store import Store, reachable
from storage.text import Piece, cut_into_pieces, measure, read_documents
from storage.writer import TORCH_DTYPES, DatasetWriter

Progress = Callable[[int, int], None]
"""Called with the rows written so far and the rows there will be."""

COMPARED = ("settings", "model", "text")
"""The parts of a harvest's provenance that must be equal for its rows to be used again."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A text as the model will see it, and which of its tokens become rows."""

    pieces: list[Piece]
    dropped_ids: np.ndarray
    """Token ids that become no rows."""
    rows: int
    special_ids: list[int]
    pad_id: int


def harvest(config: HarvestFile, *, on_progress: Progress | None = None) -> tuple[Manifest, bool]:
    """Write the dataset that `config` describes, or find it written; the bool says that it was found.

    Raises UserError in one line for anything in `config` that cannot be done; then no dataset and no shard is left.
    """
    store = Store.at(config.output, config.storage.settings)
    facts = inspect_model(config.model)
    _check_against_model(config, facts)
    source = {
        "settings": config.settings,
        "model": {"num_layers": facts.num_layers, "fingerprint": facts.fingerprint},
        "text": measure(read_documents(config.text)).as_dict(),
    }
    found = _find_existing(store, config.output, source)
    if found is not None:
        return found, True
    store.check_writable("output")
    tokens = _tokenize(config, facts)
    reader = _load_reader(config, facts, tokens)
    writer = _open_writer(config, store, tokens, reader, source)
    return _write(config, tokens, reader, writer, on_progress or (lambda done, total: None)), False


def _check_against_model(config: HarvestFile, facts: ModelFacts) -> None:
    for name, site in config.sites.items():
        if site.hidden_state > facts.num_layers:
            raise UserError(
                f"sites.{name}.hidden_state: {site.hidden_state}, but the model has {facts.num_layers} layers "
                f"(0 to {facts.num_layers})"
            )
    if facts.max_context is not None and config.context_length > facts.max_context:
        raise _too_long(config, facts.max_context)


def _too_long(config: HarvestFile, limit: int) -> UserError:
    return UserError(f"context_length: {config.context_length}, but the model takes at most {limit} tokens")


def _find_existing(store: Store, output: str, source: dict[str, Any]) -> Manifest | None:
    """The harvest that lies in the store if it has the same source. Raises UserError when another dataset is there."""
    with reachable("output", store.url):
        if not store.exists(MANIFEST):
            return None
    manifest = load_manifest(store)
    if not manifest.provenance.keys() >= set(COMPARED):
        raise UserError(f"output: {output} holds a dataset that was not harvested by lexray; choose another output")
    wanted, written = (_flatten({part: whole[part] for part in COMPARED}) for whole in (source, manifest.provenance))
    for name in [*wanted, *(written.keys() - wanted.keys())]:
        if wanted.get(name) != written.get(name):
            field = name.removeprefix("settings.")
            raise UserError(
                f"{field}: {_show(wanted.get(name))}, but the dataset in {output} was harvested with "
                f"{_show(written.get(name))}; choose another output or remove that one"
            )
    manifest.check_shards(store)
    return manifest


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _show(value: Any) -> str:
    return "none" if value is None else str(value)


def _tokenize(config: HarvestFile, facts: ModelFacts) -> Tokens:
    """Cut the text into pieces, as many as `max_rows` needs. Raises UserError when no token becomes a row."""
    tokenizer = load_tokenizer(config.model, facts.path)
    if config.context_length > tokenizer.model_max_length:
        raise _too_long(config, tokenizer.model_max_length)
    # Whole documents are longer than any context; the tokenizer need not warn of what is cut afterwards.
    tokenizer.model_max_length = int(1e30)
    special_ids = special_token_ids(tokenizer)
    dropped_ids = np.array(special_ids if config.special_tokens == "drop" else [], dtype=np.int32)
    pieces, rows = [], 0
    seen_ids: set[int] = set()
    for piece in cut_into_pieces(read_documents(config.text), tokenizer, config.context_length):
        pieces.append(piece)
        rows += int((~np.isin(piece.token_ids, dropped_ids)).sum())
        seen_ids.update(piece.token_ids.tolist())
        if config.max_rows is not None and rows >= config.max_rows:
            rows = config.max_rows
            break
    if not rows:
        raise UserError("text: its documents have no token but special ones; there is nothing to harvest")
    # transformers makes up an empty tokenizer for a folder without one.
    if seen_ids <= {*special_ids, tokenizer.unk_token_id}:
        raise UserError(f"model: the tokenizer of {config.model!r} knows no word of the text; is it complete?")
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Tokens(pieces=pieces, dropped_ids=dropped_ids, rows=rows, special_ids=special_ids, pad_id=pad_id)


def _load_reader(config: HarvestFile, facts: ModelFacts, tokens: Tokens) -> HiddenStateReader:
    model = load_model(config.model, facts.path)
    with _running(config):
        return choose_reader(
            model,
            num_layers=facts.num_layers,
            wanted=frozenset(site.hidden_state for site in config.sites.values()),
            pad_id=tokens.pad_id,
            first=[piece.token_ids for piece in tokens.pieces[: config.batch_texts]],
        )


@contextmanager
def _running(config: HarvestFile) -> Iterator[None]:
    """Turn what a model raises when it cannot run on the text into one line for the user."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"batch_texts: {config.batch_texts} pieces of up to {config.context_length} tokens need more memory than "
            "the device has; lower it"
        ) from error
    except (RuntimeError, IndexError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"model: {config.model!r} cannot be run on the text ({reason})") from error


def _describe_run(config: HarvestFile, model: Any) -> dict[str, Any]:
    """What does not decide whether rows are used again, for people who ask where they came from."""
    libraries = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    compute = {"compute_dtype": str(model.dtype).removeprefix("torch."), "device": model.device.type}
    return {**libraries, **compute, "python": platform.python_version(), "batch_texts": config.batch_texts}


def _write(
    config: HarvestFile, tokens: Tokens, reader: HiddenStateReader, writer: DatasetWriter, on_progress: Progress
) -> Manifest:
    """Run the model over the pieces and store the rows; whatever goes wrong, no shard of this run is left."""
    on_progress(0, tokens.rows)
    try:
        for vectors, columns in _read_rows(config, tokens, reader):
            writer.add(vectors, columns)
            on_progress(writer.rows, tokens.rows)
        assert writer.rows == tokens.rows, (writer.rows, tokens.rows)
        return writer.close()
    except OSError as error:
        writer.discard()
        reason = error.strerror or str(error)
        raise UserError(f"output: cannot write to {writer.store.url} ({reason}); choose another place") from error
    except BaseException:
        writer.discard()
        raise


def _open_writer(
    config: HarvestFile, store: Store, tokens: Tokens, reader: HiddenStateReader, source: dict[str, Any]
) -> DatasetWriter:
    numbers = {name: site.hidden_state for name, site in config.sites.items()}
    return DatasetWriter(
        store=store,
        sites={name: reader.widths[number] for name, number in numbers.items()},
        dtype=config.dtype,
        chunk_rows=config.chunk_rows,
        shard_rows=config.shard_rows,
        sources={name: f"hidden state after layer {n}" if n else "embeddings" for name, n in numbers.items()},
        special_token_ids=tokens.special_ids,
        provenance=source | {"run": _describe_run(config, reader.model)},
    )


def _read_rows(
    config: HarvestFile, tokens: Tokens, reader: HiddenStateReader
) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]]:
    """Rows of one batch of pieces after the other: per site (rows, width), per column (rows)."""
    rows_left = tokens.rows
    for start in range(0, len(tokens.pieces), config.batch_texts):
        pieces = tokens.pieces[start : start + config.batch_texts]
        piece_of_row, columns = _columns(pieces, tokens.dropped_ids, rows_left)
        rows_left -= len(piece_of_row)
        with _running(config):
            states = reader.read([piece.token_ids for piece in pieces])
        vectors = {}
        for name, site in config.sites.items():
            vectors[name] = _as_stored(config, name, states[site.hidden_state][piece_of_row, columns["position"]])
        yield vectors, columns


def _columns(pieces: list[Piece], dropped_ids: np.ndarray, max_rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The rows of a batch in order: number of each one's piece in the batch (rows), and its columns (rows)."""
    kept = [np.flatnonzero(~np.isin(piece.token_ids, dropped_ids)) for piece in pieces]
    token_id = np.concatenate([piece.token_ids[position] for piece, position in zip(pieces, kept, strict=True)])
    piece_of_row = np.repeat(np.arange(len(pieces)), [len(position) for position in kept])
    document = np.array([piece.document for piece in pieces])[piece_of_row]
    columns = {"token_id": token_id, "position": np.concatenate(kept), "document": document}
    return piece_of_row[:max_rows], {name: column[:max_rows] for name, column in columns.items()}


def _as_stored(config: HarvestFile, name: str, x_BD: torch.Tensor) -> torch.Tensor:
    """The rows rounded to the dataset's dtype. Raises UserError when a value is not finite, before or after."""
    if not torch.isfinite(x_BD).all():
        raise UserError(f"sites.{name}: the model gives values that are not finite, computing in {x_BD.dtype}")
    stored = x_BD.to("cpu", TORCH_DTYPES[config.dtype])
    if not torch.isfinite(stored).all():
        largest = float(x_BD.abs().max())
        raise UserError(f"dtype: {config.dtype} cannot hold sites.{name}, which reaches {largest:,.0f}; use bfloat16")
    return stored
