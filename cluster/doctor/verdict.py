"""What a check says: one line of the doctor's table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

SHOWN = 4
"""Nodes that a line names at most."""
GIB = 2**30


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line."""

    name: str
    status: Status
    found: str
    """What was found; for a skipped one why."""
    advice: str = ""
    """What to do; empty where there is nothing."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where ok ends."""

    free_disk_bytes: int = 10 * GIB
    """That Ray's folder of sessions needs for logs and spilled objects."""
    full_disk: float = 0.95
    """Share of a disk from which on Ray itself refuses to spill."""
    used_memory: float = 0.85
    """Share of a node's memory; Ray kills workers from 0.95 on."""
    skew_warn_s: float = 2.0
    """Deadlines and times of logs differ by as much."""
    skew_fail_s: float = 60.0
    """Temporary credentials and signed requests begin to be refused somewhere above."""
    all_reduce_gb_s: float = 0.0
    """Of the fastest backend between nodes, at least; 0 asks for nothing."""


def ok(name: str, found: str) -> Check:
    return Check(name=name, status=Status.OK, found=found)


def warn(name: str, found: str, advice: str) -> Check:
    return Check(name=name, status=Status.WARN, found=found, advice=advice)


def fail(name: str, found: str, advice: str) -> Check:
    return Check(name=name, status=Status.FAIL, found=found, advice=advice)


def skipped(name: str, reason: str) -> Check:
    return Check(name=name, status=Status.SKIPPED, found=reason)


def listed(problems: Iterable[str]) -> str:
    """Several problems in one line, the first few of them in full."""
    found = list(problems)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def of_nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"
