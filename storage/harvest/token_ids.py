"""Token ids against the rows of the models' embeddings: a tokenizer may know tokens that its model does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lexray.storage.errors import UserError
from lexray.storage.harvest.language_model import ModelFacts
from lexray.storage.harvest.pieces import Pieces


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
