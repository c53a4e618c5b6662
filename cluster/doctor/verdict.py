"""The result of a check, the limits of the checks, and results as a table and as a JSON document."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from rich.table import Table
from rich.text import Text

SHOWN = 4
"""Maximum number of problems that a line names."""
GIB = 2**30


class Status(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.SKIPPED: "dim"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of one check."""

    name: str
    """Its name in the table; empty until `examine` gives that of the function."""
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


def ok(found: str, *, name: str = "") -> Check:
    return Check(name=name, status=Status.OK, found=found)


def warn(found: str, advice: str, *, name: str = "") -> Check:
    return Check(name=name, status=Status.WARN, found=found, advice=advice)


def fail(found: str, advice: str, *, name: str = "") -> Check:
    return Check(name=name, status=Status.FAIL, found=found, advice=advice)


def skipped(reason: str, *, name: str = "") -> Check:
    return Check(name=name, status=Status.SKIPPED, found=reason)


def listed(problems: Iterable[str]) -> str:
    """Join problems into one line that shows the first few in full."""
    found = list(problems)
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + more


def of_nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def is_healthy(checks: Sequence[Check]) -> bool:
    """Return whether no check failed; warnings are allowed."""
    return all(check.status is not Status.FAIL for check in checks)


def as_table(checks: Sequence[Check]) -> Table:
    """Return a table with one row a check."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "", "found", "what to do"):
        table.add_column(column, overflow="fold", no_wrap=column in ("check", ""))
    for check in checks:
        status = Text(check.status.value, style=COLOURS[check.status])
        table.add_row(check.name, status, Text(check.found), Text(check.advice))
    return table


def as_document(checks: Sequence[Check], address: str, took_s: float) -> dict[str, Any]:
    """Return the document that `--json` prints; its format is stable."""
    return {
        "address": address,
        "healthy": is_healthy(checks),
        "took_s": round(took_s, 1),
        "checks": [{**vars(check), "status": check.status.value} for check in checks],
    }


def checks_of(document: dict[str, Any]) -> list[Check]:
    """Return the checks of such a document."""
    return [Check(**{**entry, "status": Status(entry["status"])}) for entry in document["checks"]]
