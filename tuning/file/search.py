"""How points are chosen from the axes: all of them, or so many at random."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from storage.config_file import FileModel
from tuning.file.axes import Point, Range, Values


class SearchBlock(FileModel):
    """Which points of the axes are trained."""

    kind: Literal["grid", "random"] = "grid"
    """`grid` takes every combination of the axes' values; `random` draws from lists and ranges."""
    trials: int | None = Field(default=None, gt=0)
    """Dictionaries that `random` draws, each another one."""
    seed: int = Field(default=0, ge=0)
    """Of the draws. The first trials stay the same when `trials` grows, and so do other axes when one is added."""

    @model_validator(mode="after")
    def _trials_of_a_draw(self) -> SearchBlock:
        if self.kind == "random" and self.trials is None:
            raise ValueError("kind random needs `trials`, the number of dictionaries to draw")
        if self.kind == "grid" and self.trials is not None:
            raise ValueError(f"trials ({self.trials}) is for kind random; a grid has as many as its axes make")
        return self


def draws(axes: Mapping[str, Values], seed: int) -> Iterator[Point]:
    """Points without end. An axis' value at the n-th draw depends on the seed, the axis, its values and n alone."""
    for number in itertools.count():
        yield {axis: _drawn(values, f"{seed}/{axis}/{number}") for axis, values in axes.items()}


def _drawn(values: Values, key: str) -> Any:
    share = random.Random(key).random()
    return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]
