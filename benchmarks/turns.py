"""Steps that take turns, so that a busy machine slows them alike, and the table of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def take_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each step, over so many rounds in which every one has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_ratios(seconds: Mapping[str, float], base: str) -> None:
    """One line a step: milliseconds, and how many times those of `base`."""
    for name, value in seconds.items():
        print(f"{name:28} {value * 1e3:8.1f} ms   {value / seconds[base]:6.2f} x {base}")
