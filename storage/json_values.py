"""Plain values as JSON has them."""

from __future__ import annotations

import math
from typing import Any


def with_nulls(value: Any) -> Any:
    """Return plain nested values with None for every float that is not finite: JSON has no NaN."""
    if isinstance(value, dict):
        return {name: with_nulls(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [with_nulls(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
