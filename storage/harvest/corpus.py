"""What a harvest reads: text or images, as numbered pieces of which shards are made."""

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
    """Text or images."""

    def __len__(self) -> int: ...

    def select(self, numbers: np.ndarray) -> Any:
        """Pieces as a `ShardTask` carries them."""
        ...

    def rows_of_pieces(self, facts: ReplicaFacts) -> np.ndarray:
        """Rows of each piece."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies it, as a part of the dataset's provenance."""
        ...

    @property
    def report(self) -> CorpusReport:
        """What was replaced or left out while it was read."""
        ...

    @property
    def special_ids(self) -> Sequence[int]:
        """Token ids of rows that stand for no text or patch."""
        ...

    @property
    def dropped_ids(self) -> tuple[int, ...]:
        """Token ids that become no rows."""
        ...

    @property
    def pad_id(self) -> int: ...

    @property
    def first_pieces(self) -> int:
        """How many make a first batch, to try the models on."""
        ...


def open_corpus(config: HarvestFile, models: dict[str, ModelFacts], on_tokens: OnTokens) -> Corpus:
    """Read the text, or find the images. Raises UserError when there is nothing to harvest."""
    if config.images is not None:
        return open_images(config.images, config.storage.settings)
    return read_text(config, models, on_tokens)
