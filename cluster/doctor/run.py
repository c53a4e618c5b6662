"""One run of the doctor on a cluster that this process joins, or starts here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.connect import connected
from cluster.doctor.asking import Deadline
from cluster.doctor.examine import examine
from cluster.doctor.gather import Request, gather
from cluster.doctor.probe import Clock
from cluster.doctor.verdict import Check, Limits

TOTAL_S = 26.0
"""All questions together, once connected; what they leave undone is told as such."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What the doctor says."""

    address: str
    """`this machine` where Ray was started for it."""
    checks: Sequence[Check]
    took_s: float
    """From the connection to the last answer."""


def diagnose(
    request: Request,
    address: str | None,
    limits: Limits,
    clock_of: Callable[[str], Clock] = lambda name: time.time,
) -> Diagnosis:
    """Look at the cluster at `address`, None is this machine. Raises UserError when nobody answers there."""
    with connected(address):
        began = time.monotonic()
        found = gather(request, Deadline.after(TOTAL_S), clock_of)
        took_s = time.monotonic() - began
    return Diagnosis(address=address or "this machine", checks=examine(found, limits), took_s=took_s)
