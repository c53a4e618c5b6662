"""Which of many cases run in `make test`; the others are slow ones."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import pytest

FAMILIES = ("topk", "batch_topk", "relu", "jumprelu", "mp", "relaxed_archetypal", "crosscoder", "nmf")
"""One architecture of each way to a code, to atoms and to learn."""


def quick(cases: Iterable[Any], chosen: Container[Any] = FAMILIES) -> list[Any]:
    """Return the cases as parameters of a test, marked slow unless chosen."""
    return [case if case in chosen else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
