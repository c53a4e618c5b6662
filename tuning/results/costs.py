"""Costs of the trials of a sweep: time, machine hours, and money if the sweep file has prices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lexray.tuning.endings.budget import Usage, sum_usage
from lexray.tuning.file.resources import PricesBlock
from lexray.tuning.file.stop_block import SECONDS_PER_HOUR
from lexray.tuning.sweep_folder import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of trials of one architecture and width, or of all."""

    name: str
    trials: int
    """Number of started trials."""
    wall_s: float
    """Seconds from start to end, summed over trials; of the last attempt of each."""
    train_s: float
    """Part of `wall_s` in training steps; NaN if a trial lacks it."""
    cpu_hours: float
    """CPU hours of all attempts."""
    gpu_hours: float
    money: float | None
    """Money for CPUs and GPUs by the sweep file's prices; None without them. Nodes are priced by the sweep's time, not
    here."""


def costs(records: Sequence[TrialRecord], spent: Mapping[str, Usage], prices: PricesBlock | None = None) -> list[Cost]:
    """Return the costs by architecture and width, and in total; empty if no trial has started."""
    begun = [record for record in records if record.timing or record.trial in spent]
    groups: dict[str, list[TrialRecord]] = {}
    for record in sorted(begun, key=_kind):
        architecture, width = _kind(record)
        groups.setdefault(f"{architecture}, width {width}", []).append(record)
    found = [_cost(name, group, spent, prices) for name, group in groups.items()]
    return [*found, _cost("all", begun, spent, prices)] if begun else []


def _kind(record: TrialRecord) -> tuple[str, int]:
    dictionary = record.config.get("dictionary", {})
    return str(dictionary.get("architecture", "")), int(dictionary.get("width", 0))


def _cost(name: str, records: Sequence[TrialRecord], spent: Mapping[str, Usage], prices: PricesBlock | None) -> Cost:
    total = sum_usage(spent.get(record.trial, Usage()) for record in records)
    cpu_hours, gpu_hours = total.cpu_s / SECONDS_PER_HOUR, total.gpu_s / SECONDS_PER_HOUR
    timed = [record.timing for record in records if record.timing.get("total_s")]
    return Cost(
        name=name,
        trials=len(records),
        wall_s=sum(timing["total_s"] for timing in timed),
        train_s=sum(timing.get("train_s", math.nan) for timing in timed),
        cpu_hours=cpu_hours,
        gpu_hours=gpu_hours,
        money=None if prices is None else prices.cpu_hour * cpu_hours + prices.gpu_hour * gpu_hours,
    )
