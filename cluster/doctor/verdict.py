"""The result of a check, shown as one line of the doctor's table, and the limits of the checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

SHOWN = 4
"""Maximum number of problems that a line names."""
GIB = 2**30


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check."""

    name: str
    status: Status
    found: str
    """The finding; the reason for a skipped check."""
    advice: str = ""
    """The remedy; empty if none is needed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Thresholds of the checks."""

    free_disk_bytes: int = 10 * GIB
    """Free disk space that Ray's session folder needs for logs and spilled objects."""
    full_disk: float = 0.95
    """Used share of a disk above which Ray refuses to spill."""
    used_memory: float = 0.85
    """Used share of a node's memory that gives a warning; Ray kills workers from 0.95 on."""
    skew_warn_s: float = 2.0
    """Clock skew in seconds that gives a warning: deadlines and log times differ by as much."""
    skew_fail_s: float = 60.0
    """Clock skew in seconds that fails: temporary credentials and signed requests are refused somewhere above."""
    all_reduce_gb_s: float = 0.0
    """Minimum GB/s of the fastest backend between nodes; 0 disables the check."""


def ok(name: str, found: str) -> Check:
    return Check(name=name, status=Status.OK, found=found)


def warn(name: str, found: str, advice: str) -> Check:
    return Check(name=name, status=Status.WARN, found=found, advice=advice)


def fail(name: str, found: str, advice: str) -> Check:
    return Check(name=name, status=Status.FAIL, found=found, advice=advice)


def skipped(name: str, reason: str) -> Check:
    return Check(name=name, status=Status.SKIPPED, found=reason)


def listed(problems: Iterable[str]) -> str:
    """Join problems into one line that shows the first few in full."""
    found = list(problems)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def of_nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
