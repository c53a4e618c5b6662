"""Runs `lexray list`: lists the sweeps below a folder, or those submitted to a cluster."""

from __future__ import annotations

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lexray.cluster.consoles import plain_table, wide_console
from lexray.cluster.follow.sweep_status import state_of
from lexray.cluster.jobs.job_client import JobClient
from lexray.cluster.output import moment, print_json
from lexray.cluster.provisioned.connection import Target, connect
from lexray.storage.errors import UserError
from lexray.storage.polling import READERS
from lexray.storage.store import Store, reachable
from lexray.tuning.driver_record import read_driver
from lexray.tuning.sweep_folder import SweepFolder

WIDE = 400
"""Line width in characters when the output is not a terminal."""
DEPTH = 2
"""Levels of subfolders that are searched."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A sweep below a folder."""

    url: str
    state: str
    seen_s: float | None
    """Unix time of the driver's last heartbeat."""
    counts: dict[str, int] = field(default_factory=dict)
    """Trials by status."""


def run_list(prefix: str | None, target: Target, as_json: bool) -> None:
    """Print the sweeps on stdout. Raises UserError unless either a folder or a cluster is given."""
    if (prefix is None) == (not target):
        raise UserError(
            "what to list? give the url of a folder, or a cluster by --address or --cluster; one of the two"
        )
    if prefix is not None:
        _show([vars(sweep) for sweep in sweeps_below(Store.at(prefix), time.time())], as_json)
        return
    with connect(target) as connection:
        jobs = JobClient(connection.dashboard).jobs()
    _show([vars(job) for job in jobs], as_json)


def sweeps_below(store: Store, now_s: float) -> list[Listed]:
    """Return the sweeps in this folder or at most `DEPTH` levels below it, sorted by url."""
    with reachable("list", store.url), ThreadPoolExecutor(READERS) as readers:
        found: list[Store] = []
        level = [store]
        for _ in range(DEPTH + 1):
            holds = list(readers.map(lambda place: place.exists("sweep.yaml"), level))
            found += [place for place, is_sweep in zip(level, holds, strict=True) if is_sweep]
            others = [place for place, is_sweep in zip(level, holds, strict=True) if not is_sweep]
            level = [place.at_path(name) for place, names in zip(others, readers.map(_folders, others), strict=True)
                     for name in names]  # fmt: skip
        return [_listed(SweepFolder(place), now_s, readers) for place in sorted(found, key=lambda place: place.url)]


def _folders(store: Store) -> list[str]:
    return [name for name in store.list_folders() if not name.startswith(".")]


def _listed(folder: SweepFolder, now_s: float, readers: ThreadPoolExecutor) -> Listed:
    driver = read_driver(folder.store)
    records = list(readers.map(folder.read_trial, folder.store.list_folders("trials")))
    counts = Counter(record.status for record in records if record is not None)
    seen_s = None if driver is None else driver.seen_s
    return Listed(url=folder.store.url, state=state_of(driver, now_s), seen_s=seen_s, counts=dict(counts))


def _show(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if not found:
        print("no sweeps")
        return
    columns = (column.removesuffix("_s") for column in found[0])
    rows = ((_cell(name, value) for name, value in row.items()) for row in found)
    wide_console(WIDE).print(plain_table(columns, rows, overflow="fold"))  # one line a sweep, for other programs


def _cell(name: str, value: Any) -> str:
    if name.endswith("_s"):
        return moment(value)
    if isinstance(value, dict):
        return ", ".join(f"{count} {key}" for key, count in value.items())
    return str(value)
