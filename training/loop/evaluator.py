"""Measure the dictionary of a training on validation or test documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lexray.storage.stream import BatchStream
from lexray.training.config import DataConfig
from lexray.training.dictionaries.base import RawRows
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.engine import Engine
from lexray.training.engines.micro_batches import parts_of
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.axes import DataAxis

CALIBRATION_ROWS = 16_384
"""Validation rows on which thresholds of inference are set at most."""


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Computes the metrics of the dictionary as it is now, equal on every rank. Every rank calls it."""

    engine: Engine
    stream: BatchStream
    data: DataConfig
    max_rows: int
    rows: DataAxis
    micro_batches: int = 1
    """Parts in which a batch is evaluated."""
    calibrates: bool = False
    """Whether the dictionary sets its thresholds of inference on these rows first."""

    def __call__(self, k: int | None = None) -> dict[str, float]:
        """Return the metrics by name, of codes with `k` active latents if it is given."""
        dictionary = self.engine.dictionary
        with self.engine.whole_parameters():
            if self.calibrates:
                dictionary.calibrate(lambda: self._batches(min(self.max_rows, CALIBRATION_ROWS)))
            return evaluate(dictionary, self._batches(self.max_rows), self.rows, k=k, sites=self.data.reconstructed)

    def _batches(self, max_rows: int) -> Iterator[RawRows]:
        return (
            part
            for batch in self.stream.every_row(max_rows)
            for part in parts_of(raw_rows(batch, self.data, self.engine.device), self.micro_batches)
            if len(part.x_BD)
        )
