"""Values of the frontier's columns from a trial's `measures.json` and from the sweep's `stability.json`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from lexray.tuning.results.columns import COLUMNS, MEASURES

Document = Mapping[str, Any]
"""A trial's `measures.json`."""


def measured_columns(document: Document, distortion: float | None) -> dict[str, float]:
    """Return the columns of `measures.json`, with the bits at the FVU `distortion`; NaN where a value is missing."""
    bits = bits_by_fvu(document).get(distortion, math.nan) if distortion is not None else math.nan
    values = {name: _number(_at(document, COLUMNS[name].place)) for name in MEASURES if name != "bits"}
    return values | {"bits": bits, "bits_at_fvu": math.nan if distortion is None else distortion}


def common_distortion(documents: Iterable[Document]) -> float | None:
    """Return the smallest FVU at which every trial has bits.

    Where there is none, that at which most have; None where no trial has bits.
    """
    reached = Counter(fvu for document in documents for fvu in bits_by_fvu(document))
    return max(reached, key=lambda fvu: (reached[fvu], -fvu), default=None)


def bits_by_fvu(document: Document) -> dict[float, float]:
    """Return the bits per row by the FVU that they reach; an FVU that is not reached is left out."""
    found = _at(document, COLUMNS["bits"].place) or {}
    numbers = {float(fvu): _number(bits) for fvu, bits in found.items()}
    return {fvu: bits for fvu, bits in numbers.items() if math.isfinite(bits)}


def summary(document: Document) -> dict[str, float]:
    """Return a trial's measures by name, those that have a value; bits at each FVU as `bits_at_fvu/0.3`.

    Other trials, and with them the FVU of the table's `bits`, are unknown here.
    """
    bits = {f"bits_at_fvu/{fvu:g}": bits for fvu, bits in bits_by_fvu(document).items()}
    values = {name: _number(_at(document, COLUMNS[name].place)) for name in MEASURES if name != "bits"}
    return {name: value for name, value in values.items() if math.isfinite(value)} | bits


def stability_columns(stability: Mapping[str, Any] | None) -> dict[str, dict[str, float]]:
    """Return the columns of each trial from `stability.json`: those of all seeds of its configuration."""
    return {
        trial: {"stability": _number(group["score"]), "stability_at_start": _number(group["at_start"])}
        for group in (stability or {}).get("seeds", [])
        for trial in group["trials"]
    }


def _at(document: Document, place: str) -> Any:
    found: Any = document
    for name in place.split("."):
        found = (found or {}).get(name)
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
