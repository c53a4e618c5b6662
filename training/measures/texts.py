"""Load the model and the text for splicing as the harvest of the dictionary's dataset did."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError

from lexray.storage.config_file import describe
from lexray.storage.errors import UserError
from lexray.storage.harvest.harvest_file import TextChoice
from lexray.storage.harvest.language_model import inspect_model, load_causal_model, load_tokenizer, special_token_ids
from lexray.storage.harvest.pieces import PieceCutter, PiecesBuilder
from lexray.storage.harvest.plan import batches
from lexray.storage.harvest.site_choice import SiteChoice, check_numbers, find_place
from lexray.storage.harvest.text import read_documents
from lexray.storage.harvest.text_corpus import check_token_ids, choose_pad_id
from lexray.storage.harvest.token_rows import pad
from lexray.storage.harvest.tower import find_tower
from lexray.storage.store import StorageSettings
from lexray.training.measures.splice import PieceBatch, Spliced

_JSON_LINES = re.compile(r"\.(jsonl|ndjson|json)\b")
BATCH_TOKENS = 1024
"""Tokens of one forward pass, including padding: logits of four cases are held at once."""


@dataclass(frozen=True, kw_only=True)
class HarvestFacts:
    """Settings of the harvest, from a dataset's provenance."""

    sites: dict[str, SiteChoice]
    context_length: int
    context: str
    drops_special: bool

    @staticmethod
    def of(provenance: dict[str, Any], given: dict[str, Any] | None = None) -> HarvestFacts:
        """Read the provenance of a dataset; `given` places of sites, by name, replace missing ones.

        Raises UserError for rows that are not tokens of one text model, and for unknown sites.
        """
        settings = provenance.get("settings") if isinstance(provenance.get("settings"), dict) else {}
        assert isinstance(settings, dict)
        if settings.get("images") is not None or settings.get("rows", "token") != "token":
            raise UserError(
                "model: the dictionary's rows are no tokens of a text, so nothing can be put in their place"
            )
        if settings.get("models") is not None:
            raise UserError("model: the dictionary reads several models at once, which cannot be spliced")
        return HarvestFacts(
            sites={name: _choice(name, value) for name, value in (settings.get("sites", {}) | (given or {})).items()},
            context_length=int(settings.get("context_length", 256)),
            context=settings.get("context") or "split",
            drops_special=settings.get("special_tokens", "drop") == "drop",
        )


def _choice(name: str, value: Any) -> SiteChoice:
    try:
        return SiteChoice.model_validate(value)
    except ValidationError as error:
        raise UserError(f"sites.{name}: {describe(error, SiteChoice)}") from error


def load_spliced(
    name: str, facts: HarvestFacts, inputs: tuple[str, ...], outputs: tuple[str, ...], device: str
) -> Spliced:
    """Load the causal language model `name` (as in a harvest file) with its head. Raises UserError."""
    found = inspect_model(name)
    unknown = [site for site in (*inputs, *outputs) if site not in facts.sites]
    if unknown:
        raise UserError(f"sites: nothing tells where {unknown[0]!r} is read in {name}; give --site '{unknown[0]}: ...'")
    for site in inputs + outputs:
        check_numbers(site, facts.sites[site], found.num_layers)
    model = load_causal_model(found).to(device)
    tower = find_tower(model.base_model)
    places = {site: find_place(site, facts.sites[site], tower, found.num_layers) for site in inputs + outputs}
    return Spliced(
        model=model,
        tower=tower,
        num_layers=found.num_layers,
        inputs=tuple(places[site] for site in inputs),
        outputs=tuple(places[site] for site in outputs),
    )


def text_choice(file: str, column: str = "text") -> TextChoice:
    """Choose a format by the ending of a path, url or glob: JSON lines, parquet, or else one document a file.

    The ending of a compression (`.json.zst`) may follow.
    """
    name = file.rpartition("/")[2].lower()
    if _JSON_LINES.search(name):
        return TextChoice(jsonl=file, column=column)
    return TextChoice(parquet=file, column=column) if ".parquet" in name else TextChoice(files=file)


def piece_batches(
    name: str, facts: HarvestFacts, text: TextChoice, *, max_tokens: int, device: str
) -> Iterator[PieceBatch]:
    """Yield the text in pieces, cut as in the harvest, up to `max_tokens`. Raises UserError for an empty text."""
    model = inspect_model(name)
    tokenizer = load_tokenizer(model)
    limit, tokenizer.model_max_length = tokenizer.model_max_length, int(1e30)
    length = min(facts.context_length, int(limit), model.max_context or facts.context_length)
    cutter = PieceCutter(tokenizer=tokenizer, context_length=length, context=facts.context)  # type: ignore[arg-type]
    builder, total = PiecesBuilder(), 0
    for piece in cutter.cut(read_documents(text, StorageSettings())):
        builder.add(piece)
        total += len(piece.token_ids)
        if total >= max_tokens:
            break
    if not total:
        raise UserError("texts: there is no token in them")
    pieces = builder.build()
    check_token_ids(pieces, tokenizer, [model])
    dropped = special_token_ids(tokenizer) if facts.drops_special else []
    everything = pieces.select(np.arange(len(pieces)))
    pad_id = choose_pad_id(tokenizer, [model])
    for numbers in batches(pieces.lengths, BATCH_TOKENS):
        inputs = {key: value.to(device) for key, value in pad(everything.ids(numbers), pad_id).items()}
        is_special_BT = torch.isin(inputs["input_ids"], torch.tensor(dropped, device=device, dtype=torch.int64))
        yield PieceBatch(inputs=inputs, text_BT=inputs["attention_mask"].bool() & ~is_special_BT)
