"""Compute all measures of a finished dictionary, in two passes over test rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.json_values import with_nulls
from lexray.training.dictionaries.base import Dictionary, RawRows
from lexray.training.dictionaries.crosscoder import Crosscoder
from lexray.training.measures.coherence import COMPARE_FLOP, coherence
from lexray.training.measures.documents import RowSquares
from lexray.training.measures.firing import FiringCounts
from lexray.training.measures.latent_scaling import ScalingSums, can_scale
from lexray.training.measures.likeness import Likeness
from lexray.training.measures.metrics import METRICS_VERSION, Sums
from lexray.training.measures.rate import Rates, contribution_norms

MEASURES_VERSION = 1
"""Version of the definitions; `lexray.training.measures.metrics` has a separate version."""

Batches = Callable[[], Iterable[RawRows]]
"""Yields the same rows at each call, in batches of any sizes."""


class Measures(NamedTuple):
    """Measures of a dictionary."""

    document: dict[str, Any]
    """Plain values, see `docs/metrics.md`; None where a value is undefined."""
    fired_F: Tensor
    """Rows in which each latent is active (F), int64."""
    squares: RowSquares
    """Squared errors and distances of the rows, in their order."""


@torch.no_grad()
def measure(dictionary: Dictionary, batches: Batches, *, max_flop: float | None = COMPARE_FLOP) -> Measures:
    """Measure a whole dictionary (not a slice of one) on raw rows, on the device where they are.

    Costs about as much as `1 + len(SHARES)` encodings of all rows, and the comparison of the atoms, which takes at
    most `max_flop` operations (None: all atoms are compared). Raises UserError when there are no rows.
    """
    first = _First(dictionary)
    for batch in batches():
        first.add(batch)
    if not first.firing.rows:
        raise UserError("measure: there are no held-out rows; raise data.held_out")
    rates = Rates(dictionary, first.firing.l0, first.contribution)
    for batch in batches():
        rates.add(batch)
    atoms_FO: Tensor = dictionary.atoms_FD()  # type: ignore[operator]
    variance_S, fvu = first.sums.variance_S, first.sums.fvu()
    document = {
        "format": "lexray-measures",
        "version": MEASURES_VERSION,
        "metrics_version": METRICS_VERSION,
        "rows": first.firing.rows,
        "fvu": sum(fvu) / len(fvu),
        "firing": first.firing.document(),
        "likeness": first.likeness.document(),
        "curve": rates.curve(variance_S),
        "description_length": rates.description_length(variance_S),
        "coherence": coherence(atoms_FO, round(first.firing.l0), max_flop=max_flop),
    }
    if first.scaling is not None:
        document["latent_scaling"] = first.scaling.result().document()
    return Measures(with_nulls(document), first.firing.counts_F.cpu(), first.squares())


class _First:
    """Sums of the first pass, over codes as at inference."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary, self.norms_F = dictionary, contribution_norms(dictionary)
        self.sums, self.likeness = Sums(dictionary), Likeness(dictionary)
        self.firing = FiringCounts(dictionary.config.width, self.norms_F.device)
        # Of crosscoders whose sites compare.
        self.scaling = ScalingSums(dictionary) if isinstance(dictionary, Crosscoder) and can_scale(dictionary) else None
        self.squared_contributions = 0.0
        self.pairs = 0
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, batch: RawRows) -> None:
        code = self.dictionary.encode(batch.x_BD)
        y_hat_BO = self.dictionary.decode(code, batch.x_BD)
        errors_SB, distances_SB = self.sums.add(code, y_hat_BO, batch.y_BO)
        self._rows.append((errors_SB.cpu(), distances_SB.cpu()))
        self.likeness.add(y_hat_BO, batch.y_BO)
        self.firing.add(code)
        if self.scaling is not None:
            self.scaling.add(code, batch.x_BD)
        active_N = code.values != 0
        contributions = code.values[active_N].double() * self.norms_F[code.indices[active_N]].double()
        self.squared_contributions += float(contributions.square().sum())
        self.pairs += int(active_N.sum())

    @property
    def contribution(self) -> float:
        """Root mean square of |value| * ||atom|| over active pairs."""
        return (self.squared_contributions / max(1, self.pairs)) ** 0.5

    def squares(self) -> RowSquares:
        """Return the squares of all rows."""
        return RowSquares(*(torch.cat(parts, dim=1).numpy() for parts in zip(*self._rows, strict=True)))
