"""Corpora of a harvest: text or images, as numbered pieces from which shards are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lexray.storage.harvest.corpus_report import CorpusReport
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.image_corpus import open_images
from lexray.storage.harvest.language_model import ModelFacts
from lexray.storage.harvest.replica import ReplicaFacts
from lexray.storage.harvest.text_corpus import OnTokens, read_text


class Corpus(Protocol):
    """A corpus of text or images."""

    def __len__(self) -> int: ...

    def select(self, numbers: np.ndarray) -> Any:
        """Return the pieces of these numbers for a `ShardTask`."""
        ...

    def rows_of_pieces(self, facts: ReplicaFacts) -> np.ndarray:
        """Return the number of rows of each piece (P)."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """Identity of the corpus, for the dataset's provenance."""
        ...

    @property
    def report(self) -> CorpusReport:
        """Report of text that was replaced or left out on reading."""
        ...

    @property
    def special_ids(self) -> Sequence[int]:
        """Token ids of rows that represent neither text nor patches."""
        ...

    @property
    def dropped_ids(self) -> tuple[int, ...]:
        """Token ids that are not stored as rows."""
        ...

    @property
    def pad_id(self) -> int: ...

    @property
    def first_pieces(self) -> int:
        """Number of pieces in the first batch, on which the models are tried."""
        ...


def open_corpus(config: HarvestFile, models: dict[str, ModelFacts], on_tokens: OnTokens) -> Corpus:
    """Read the text, or find the images. Raises UserError when there is nothing to harvest."""
    if config.images is not None:
        return open_images(config.images, config.storage)
    return read_text(config, models, on_tokens)
