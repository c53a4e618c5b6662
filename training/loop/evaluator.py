"""Measure the dictionary of a training on validation or test documents."""

from __future__ import annotations

from dataclasses import dataclass

from lexray.storage.stream import BatchStream
from lexray.training.config import DataConfig
from lexray.training.engines.batches import raw_rows
from lexray.training.engines.engine import Engine
from lexray.training.engines.micro_batches import parts_of
from lexray.training.measures.metrics import evaluate
from lexray.training.mesh.axes import DataAxis


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

    def __call__(self, k: int | None = None) -> dict[str, float]:
        """Return the metrics by name, of codes with `k` active latents if it is given."""
        batches = (
            part
            for batch in self.stream.every_row(self.max_rows)
            for part in parts_of(raw_rows(batch, self.data, self.engine.device), self.micro_batches)
            if len(part.x_BD)
        )
        with self.engine.whole_parameters():
            return evaluate(self.engine.dictionary, batches, self.rows, k=k, sites=self.data.reconstructed)
