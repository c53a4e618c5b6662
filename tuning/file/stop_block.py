"""Blocks of a sweep file that end trials early: early stopping, a deadline, a cap on hours."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from lexray.storage.config_file import FileModel
from lexray.storage.file_settings import MAX_SECONDS

SECONDS_PER_HOUR = 3600.0
LAST_SHARE = 0.7
"""No rung lies later: what remains is the fall of the learning rate, in which the FVU still drops."""

Rule = Literal["asha", "frontier"]


class StopRules(FileModel):
    """Which trials end at their rungs; without this block none does."""

    rule: Literal["asha", "frontier", "both"]
    """`asha`: the best 1/eta of one width and target L0 go on; `frontier`: who is beaten across architectures ends."""
    eta: int = Field(default=3, ge=2)
    """At each rung one of so many configurations goes on, and rungs lie at shares that grow by this factor."""
    first_share: float = Field(default=0.1, gt=0, le=LAST_SHARE)
    """Share of a training at which the first rung lies."""
    margin: float = Field(default=0.05, ge=0, lt=1)
    """Share of its FVU by which a trial has to be beaten for the rule `frontier`."""
    z: float = Field(default=2.0, ge=0)
    """Difference of two FVUs, in units of their noise, above which it counts."""
    seeds_compete: bool = False
    """Whether seeds are held against each other; by default they are replicas of one configuration."""

    @property
    def names(self) -> tuple[Rule, ...]:
        return ("asha", "frontier") if self.rule == "both" else (self.rule,)


def _moment(value: Any) -> Any:
    """ISO text as a time; a number, even one in quotes, stays what it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("neither hours nor a time like 2030-01-31T18:00:00Z") from None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError(f"{value.isoformat()} has no time zone; append Z or an offset like +01:00")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_SECONDS:
        raise ValueError("neither hours above 0 nor a time like 2030-01-31T18:00:00Z")
    return float(value)


Deadline = Annotated[datetime | float, BeforeValidator(_moment)]


class EndsBlock(FileModel):
    """The keys of a sweep file that end trials, or all of it, before the last step."""

    stop: StopRules | None = None
    """Early stopping; by default every trial is trained to its end."""
    deadline: Deadline | None = None
    """Hours from the start of `lexray sweep`, or a time with its zone. Trials then save their state and end; running
    the sweep again, with a later deadline or none, goes on."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """Hours of GPUs that all trials may take together, every run of the sweep counted."""
    cpu_hours: float | None = Field(default=None, gt=0)
    """The same of CPUs."""

    def deadline_at_s(self, now_s: float) -> float | None:
        """The deadline as Unix time, of a sweep that starts at `now_s`."""
        if isinstance(self.deadline, datetime):
            return self.deadline.timestamp()
        return None if self.deadline is None else now_s + self.deadline * SECONDS_PER_HOUR


def in_utc(time_s: float) -> str:
    """Unix time for people: `2030-01-31 18:00:00 UTC`."""
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
