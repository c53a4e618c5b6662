"""Renders the doctor's checks as a table and as a JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from lexray.cluster.doctor.verdict import Check, Status

COLOURS = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red", Status.SKIPPED: "dim"}


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
        "checks": [
            {"name": check.name, "status": check.status.value, "found": check.found, "advice": check.advice}
            for check in checks
        ],
    }


def checks_of(document: dict[str, Any]) -> list[Check]:
    """Return the checks of such a document."""
    return [Check(**{**entry, "status": Status(entry["status"])}) for entry in document["checks"]]
