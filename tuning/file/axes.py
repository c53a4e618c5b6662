"""The axes of a sweep: which values each of them has, and the grid that they span."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from lexray.storage.config_file import FileModel, describe

TRIAL_AXES = ("architecture", "width", "expansion", "target_l0", "seed", "lr")
"""Axes that every architecture has; of `width` and `expansion` a sweep has one."""
SITE_AXES = {"sae": ("site",), "transcoder": ("site", "output_site"), "crosscoder": ("sites",)}
"""Axes over sites that dictionaries of a kind have."""
DIGITS = 4
"""Digits of a number that is drawn from a range: trials have readable names, and the same ones on every machine."""

MAX_POINTS = 20_000
"""Dictionaries of a sweep at most: all of them are planned before the first is trained."""

Point = dict[str, Any]
"""Axis to value: what one trial has."""


class Range(FileModel):
    """Numbers from `from` to `to`, both included, for a search that draws them."""

    model_config = ConfigDict(populate_by_name=True)

    low: float = Field(alias="from")
    high: float = Field(alias="to")
    scale: Literal["linear", "log"] = "linear"
    """`log` draws 1e-4 to 1e-3 as often as 1e-3 to 1e-2."""
    whole: bool = False
    """Only whole numbers."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"`from` ({self.low:g}) must be below `to` ({self.high:g})")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"`from` ({self.low:g}) must be above 0 on a log scale")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"`from` ({self.low:g}) and `to` ({self.high:g}) must be whole numbers")
        return self

    def at(self, share: float) -> float:
        """The number at so much (0 to 1) of the way."""
        if self.scale == "log":
            number = self.low * (self.high / self.low) ** share
        else:
            number = self.low + share * (self.high - self.low)
        return self.rounded(number)

    def rounded(self, number: float) -> float:
        """A number as it is trained with."""
        number = round(number) if self.whole else float(f"{number:.{DIGITS}g}")
        return min(max(number, int(self.low) if self.whole else self.low), int(self.high) if self.whole else self.high)


Values = list[Any] | Range


def axis_values(axis: str, given: Any) -> Values:
    """Return the values of an axis as a list or a range. Raises ValueError naming the axis."""
    if isinstance(given, Mapping) and axis != "site":
        if axis in ("architecture", "output_site", "sites"):
            raise ValueError(f"{axis}: has no range of numbers; list its values")
        try:
            return Range.model_validate(given)
        except ValidationError as error:
            raise ValueError(f"{axis}: {describe(error, Range)}") from error
    if not isinstance(given, list):
        return [given]
    if axis == "sites" and all(isinstance(site, str) for site in given) and given:
        return [given]  # one crosscoder's sites
    return given


def check_count(count: int) -> None:
    """Raise ValueError for more points than a sweep may have."""
    if count > MAX_POINTS:
        raise ValueError(f"{count:,} dictionaries; a sweep has at most {MAX_POINTS:,}")


def grid(axes: Mapping[str, list[Any]]) -> list[Point]:
    """Every combination of the axes' values; the last axis changes fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def width_of(expansion: Any, site_width: int) -> int:
    """Latents of a dictionary that is so many times as wide as its site. Raises ValueError unless that is whole."""
    if isinstance(expansion, bool) or not isinstance(expansion, int | float) or not expansion > 0:
        raise ValueError(f"expansion: {expansion!r} is not a number above 0")
    width = expansion * site_width
    if not math.isfinite(width) or abs(width - round(width)) > 1e-6 or width < 0.5:
        raise ValueError(
            f"expansion: {expansion:g} times the site's width {site_width} is {width:g}, not a whole number of "
            f"latents; use {max(1, round(width)) / site_width:.6g}"
        )
    return round(width)
