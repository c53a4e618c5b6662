"""`metrics.jsonl` of a trial: what was logged, one JSON object per line, in order of step. A value without meaning
is null.

The file is written whole each time (an object store cannot append), at most every `interval_s`. After a restart the
records past the resumed step are dropped, so that no step appears twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, TypeAdapter
from typing_extensions import TypedDict

from lexray.storage.documents import OPEN, Count, Number, as_described, read_lines
from lexray.storage.json_values import with_nulls
from lexray.storage.store import Store

METRICS = "metrics.jsonl"
MAX_BYTES = 64 * 2**20


class Logged(TypedDict):
    """Fields of every line."""

    __pydantic_config__ = OPEN  # type: ignore[misc]
    step: Count
    rows: NotRequired[Count]


LINE: TypeAdapter[dict[str, Any]] = TypeAdapter(Annotated[dict[str, Number], AfterValidator(as_described(Logged))])
"""Each value is a number; one that means nothing is null, or NaN."""


@dataclass(kw_only=True)
class MetricsLog:
    """The records of one trial, written by one process."""

    store: Store
    interval_s: float = 2.0
    clock: Callable[[], float] = time.monotonic
    records: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._written_at = -float("inf")

    def resume(self, step: int) -> None:
        """Keep what was logged up to `step`. Raises CorruptDataError."""
        file, remedy = f"{self.store.url}/{METRICS}", "remove it to go on without it"
        try:
            records = read_lines(self.store, METRICS, LINE, file=file, remedy=remedy, max_bytes=MAX_BYTES)
        except FileNotFoundError:
            return
        self.records = [record for record in records if record["step"] <= step]

    def add(self, record: dict[str, Any]) -> None:
        """Append; records of the same step become one, which is written when its step is over."""
        if self.records and self.records[-1]["step"] == record["step"]:
            self.records[-1] |= record
            return
        if self.records and self.clock() - self._written_at >= self.interval_s:
            self.flush()
        self.records.append(record)

    def flush(self) -> None:
        """Write the file."""
        self.store.write(METRICS, "".join(json.dumps(with_nulls(r)) + "\n" for r in self.records).encode())
        self._written_at = self.clock()
