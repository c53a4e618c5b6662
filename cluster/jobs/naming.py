"""Under which id a sweep runs: the same sweep's jobs are found by it, whoever submits them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

PREFIX = "lexray-"
HASH_CHARACTERS = 8
NAME_CHARACTERS = 40


def base_id(name: str, output_url: str) -> str:
    """Id of the first attempt at a sweep: its name, for people, and its folder."""
    shown = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:NAME_CHARACTERS].strip("-")
    folder = hashlib.sha256(output_url.encode()).hexdigest()[:HASH_CHARACTERS]
    return f"{PREFIX}{shown}-{folder}" if shown else f"{PREFIX}{folder}"


def attempt_of(job: str, base: str) -> int | None:
    """Which attempt a job is; None when it belongs to another sweep."""
    if job == base:
        return 1
    number = job.removeprefix(f"{base}-")
    return int(number) if number != job and number.isdecimal() and int(number) > 1 else None


def next_id(base: str, jobs: Iterable[str]) -> str:
    """Id of the attempt after all of these jobs."""
    newest = max((attempt for job in jobs if (attempt := attempt_of(job, base)) is not None), default=0)
    return base if newest == 0 else f"{base}-{newest + 1}"
