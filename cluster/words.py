"""Formats times, and the command that resumes a sweep, for the follow commands."""

from __future__ import annotations

from datetime import UTC, datetime

UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def span(seconds: float) -> str:
    """Format a duration in its largest whole unit: `41 s`, `12 min`, `3 h`, `2 d`."""
    for size, unit in UNITS:
        if seconds >= 2 * size or size == 1.0:
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError(seconds)


def moment(time_s: float | None) -> str:
    """Format a Unix time in UTC; empty for None."""
    return "" if time_s is None else f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S}"


def resume_command(url: str, options: str = "") -> str:
    """Return the command that resumes a sweep."""
    return f"lexray resume {url} {options or '--address URL'}"
