"""Choice of points from the axes: all of them, a number at random, or a number by what earlier ones measured."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lexray.storage.config_file import FileModel
from lexray.tuning.file.axes import Point, Range, Values


class SearchBlock(FileModel):
    """Which points of the axes are trained."""

    kind: Literal["grid", "random", "optuna"] = "grid"
    """`grid` takes every combination of the axes' values; `random` draws from lists and ranges; `optuna` chooses from
    them while the sweep runs, for a small FVU at a small L0."""
    trials: int | None = Field(default=None, gt=0)
    """Dictionaries of `random` and `optuna`, each another one."""
    seed: int = Field(default=0, ge=0)
    """Seed of the draws. The first trials stay the same when `trials` grows, and so do other axes when one is added."""
    sampler: Literal["tpe", "nsga2"] = "tpe"
    """Sampler of `optuna`: the tree-structured Parzen estimator, or the genetic algorithm NSGA-II."""

    @model_validator(mode="after")
    def _trials_of_a_draw(self) -> SearchBlock:
        if self.kind != "grid" and self.trials is None:
            raise ValueError(f"kind {self.kind} needs `trials`, the number of dictionaries to train")
        if self.kind == "grid" and self.trials is not None:
            raise ValueError(
                f"trials ({self.trials}) is for kind random or optuna; a grid has as many as its axes make"
            )
        if self.kind != "optuna" and "sampler" in self.model_fields_set:
            raise ValueError(f"sampler ({self.sampler}) is for kind optuna; the kind is {self.kind}")
        return self

    def __str__(self) -> str:
        if self.kind == "grid":
            return "grid: every combination of the axes' values"
        by = f"sampler {self.sampler}, " if self.kind == "optuna" else ""
        return f"{self.kind}: {by}seed {self.seed}, {self.trials} trials"


def draws(axes: Mapping[str, Values], seed: int) -> Iterator[Point]:
    """Points without end. An axis' value at the n-th draw depends on the seed, the axis, its values and n alone."""
    for number in itertools.count():
        yield {axis: _drawn(values, f"{seed}/{axis}/{number}") for axis, values in axes.items()}


def _drawn(values: Values, key: str) -> Any:
    share = random.Random(key).random()
    return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]
