"""Output of commands: one JSON document or a table on stdout, progress on stderr, and the format of times."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lexray.cluster.consoles import TextConsole, say
from lexray.storage.store import Store

if TYPE_CHECKING:
    from lexray.tuning.results.recommend import Recommendation

OK, FAILED = 0, 1
RECOMMENDED = 8
"""Maximum number of recommendations on a terminal; the report has more."""
UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


class OnRows(Protocol):
    """Callback with the finished and total rows; None if the total is unknown."""

    def __call__(self, done: int, total: int | None, *, label: str = ...) -> None: ...


@contextmanager
def rows_progress(label: str, messages: Console) -> Iterator[OnRows]:
    """Show a bar of rows and rows/s on stderr; yield the callback that updates it with the finished and total rows.

    A new label starts a new bar. Rows finished before a bar starts do not count for its speed.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]} rows"))
    speed = TextColumn("{task.fields[rows_per_s]:,.0f} rows/s")
    with Progress(*columns, speed, TimeRemainingColumn(), console=messages, transient=True) as progress:
        task = progress.add_task(label, total=None, rows_per_s=0.0, rows="0")
        first: dict[str, int] = {}

        def on_progress(done: int, total: int | None, *, label: str = label) -> None:
            if label not in first:
                first[label] = done
                progress.reset(task, description=label, total=total)
            elapsed = progress.tasks[task].elapsed or 1e-9
            rows = f"{done:,}" if total is None else f"{done:,}/{total:,}"
            rows_per_s = (done - first[label]) / elapsed
            progress.update(task, completed=done, total=total, rows_per_s=rows_per_s, rows=rows)

        yield on_progress


def print_json(document: Any) -> None:
    """Print a command's result on stdout as JSON: ASCII without control characters, null for NaN and infinities."""
    from lexray.storage.json_values import with_nulls

    text = json.dumps(with_nulls(document), indent=1, default=str, allow_nan=False)
    sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")


def print_frontier(
    table: Any, store: Store, messages: Console, as_json: bool, recommended: Sequence[Recommendation] = ()
) -> None:
    """Print the frontier of a sweep, the first recommended dictionaries, and the urls of its picture and report."""
    from lexray.tuning.results.frontier import frontier_rich_table

    if as_json:
        shown = {"recommended": [one._asdict() for one in recommended]} if recommended else {}
        print_json({"url": store.url, "trials": json.loads(table.to_json(orient="records")), **shown})
        return
    console = TextConsole()
    console.print(frontier_rich_table(table, console.width))
    for row in table[table["reason"].astype(bool)].itertuples():
        say(messages, f"{row.name}: {row.status}, {row.reason}")
    for one in recommended[:RECOMMENDED]:
        caveats = f"; but {'; '.join(one.caveats)}" if one.caveats else ""
        say(messages, f"recommended at L0 {one.target_l0:g}: {one.name} ({'; '.join(one.reasons)}{caveats})")
    for kind, file in (("picture", "frontier.png"), ("report", "report.html")):
        say(messages, f"{kind:8}{store.url}/{file}")


def dataset_summary(manifest: Any) -> dict[str, Any]:
    """Return a manifest without checksums and means, for display and JSON."""
    sites = {
        name: {
            "width": site.width,
            "dtype": site.dtype,
            "source": site.source,
            "mean_squared_norm": site.mean_squared_norm,
            "mean_norm": sum(m * m for m in site.mean) ** 0.5,
            "norm_quantiles": site.norm_quantiles,
        }
        for name, site in manifest.sites.items()
    }
    return {
        "id": manifest.id,
        "rows": manifest.rows,
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
        "chunk_rows": manifest.chunk_rows,
        "sites": sites,
        "provenance": manifest.provenance,
    }


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
