"""Calls probes on many nodes concurrently, each call with a time limit; a silent node delays no other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError, RayTaskError

from lexray.cluster.doctor.findings import Unknown
from lexray.storage.errors import named_line


@dataclass(frozen=True, kw_only=True)
class Deadline:
    """The end of the whole run."""

    ends_s: float
    """Time on `clock`, in seconds."""
    clock: Callable[[], float] = time.monotonic
    """Returns the current time in seconds."""

    @staticmethod
    def after(seconds: float, clock: Callable[[], float] = time.monotonic) -> Deadline:
        return Deadline(ends_s=clock() + seconds, clock=clock)

    @property
    def left_s(self) -> float:
        return max(0.0, self.ends_s - self.clock())

    def until(self, limit_s: float) -> float:
        """Return the time at which a call limited to `limit_s` seconds is given up."""
        return min(self.ends_s, self.clock() + limit_s)


class PendingCalls(NamedTuple):
    """Pending calls of one question to several nodes."""

    refs: Mapping[str, Any]
    """Ray object references by node name."""
    asked_s: float
    until_s: float


def answers(asked: PendingCalls, deadline: Deadline) -> dict[str, Any]:
    """Return each node's answer by name, or `Unknown` with the reason for its silence."""
    names = {ref: name for name, ref in asked.refs.items()}
    if not names:
        return {}
    timeout_s = max(0.0, asked.until_s - deadline.clock())
    done, _ = ray.wait(list(names), num_returns=len(names), timeout=timeout_s)
    waited_s = max(0.0, asked.until_s - asked.asked_s)
    silent = {name: Unknown(f"no answer in {waited_s:.0f} s") for name in names.values()}
    return silent | {names[ref]: _answer(ref) for ref in done}


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref)
    except RayTaskError as error:
        cause = error.cause or error
        return Unknown(named_line(cause))
    except RayError as error:
        return Unknown(named_line(error))
