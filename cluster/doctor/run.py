"""One run of the doctor on a cluster that this process joins, or starts here."""

from __future__ import annotations

from lexray.cluster.connect import connected
from lexray.cluster.doctor.asking import Deadline
from lexray.cluster.doctor.examine import examine
from lexray.cluster.doctor.gather import Request, gather
from lexray.cluster.doctor.verdict import Check, Limits

TOTAL_S = 26.0
"""All questions together, once connected; what they leave undone is told as such."""


def diagnose(request: Request, address: str | None, limits: Limits) -> list[Check]:
    """Look at the cluster at `address`, None is this machine. Raises UserError when nobody answers there."""
    with connected(address):
        found = gather(request, Deadline.after(TOTAL_S))
    return examine(found, limits)
