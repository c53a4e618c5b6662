"""Runs `lexray logs`: shows the driver's log, or a trial's records, from the sweep's folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from lexray.cluster.follow.resolve import connected_if_told, resolve
from lexray.cluster.follow.sweep_status import LOST, newest_records, state_of
from lexray.cluster.jobs.job_client import Job, JobClient, follow_job
from lexray.cluster.output import print_json, resume_command, span
from lexray.cluster.provisioned.connection import Target
from lexray.cluster.provisioned.errors import ClusterLostError
from lexray.storage.config_file import nearest
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.driver import LOG_FILE
from lexray.tuning.driver_record import RUNNING, read_driver
from lexray.tuning.sweep_folder import SweepFolder

POLL_S = 3.0
LOG_BYTES = 16 * 2**20
"""Bytes shown of a driver's log, from its end."""


def run_logs(text: str, trial: str | None, follow: bool, target: Target, as_json: bool) -> None:
    """Print log lines on stdout. Raises ClusterLostError if the followed driver is lost."""
    with connected_if_told(target) as connection:
        found = resolve(text, connection)
        has_begun = Store.at(found.url).exists("sweep.yaml") if _can_read(found.url) else False
        if (
            connection is not None
            and found.job is not None
            and trial is None
            and (found.job.is_running or not has_begun)
        ):
            _of_job(JobClient(connection.dashboard), found.job, follow, target, as_json)
            return
    folder = found.folder
    if trial is not None:
        _of_trial(folder, trial_named(folder, trial), follow, target, as_json)
        return
    if as_json:
        print_json({"url": folder.store.url, "lines": _text(folder).splitlines()})
        return
    for piece in pieces(lambda: _text(folder), _goes_on(folder, target) if follow else None):
        _say(piece)


def _can_read(url: str) -> bool:
    try:
        Store.at(url).exists("sweep.yaml")
    except Exception:  # the job server may still have the log
        return False
    return True


def _of_job(client: JobClient, job: Job, follow: bool, target: Target, as_json: bool) -> None:
    if follow and not as_json:
        follow_job(client, job.id, _say, how_to_resume=resume_command(job.output, target.options))
        return
    said = client.logs(job.id)
    if as_json:
        print_json({"url": job.output, "job": job.id, "lines": said.splitlines()})
    else:
        _say(said)


def _of_trial(folder: SweepFolder, trial: str, follow: bool, target: Target, as_json: bool) -> None:
    store = folder.trial_store(trial)
    if as_json:
        record = folder.read_trial(trial)
        print_json({
            "trial": trial,
            "status": None if record is None else record.status,
            "reason": None if record is None else record.reason,
            "records": folder.read_metrics(trial),
        })  # fmt: skip
        return
    if not follow:
        _say(_lines(folder.read_metrics(trial)))
    for piece in pieces(lambda: _lines(newest_records(store)), _goes_on(folder, target)) if follow else ():
        _say(piece)
    record = folder.read_trial(trial)
    if record is not None:
        _say(f"{record.name}: {record.status}" + (f", {record.reason}" if record.reason else "") + "\n")


def pieces(
    read: Callable[[], str], goes_on: Callable[[], bool] | None, sleep: Callable[[float], None] = time.sleep
) -> Iterator[str]:
    """Yield the text appended since the last poll, while `goes_on()`; its beginning may be truncated meanwhile."""
    before = ""
    while True:
        more = goes_on is not None and goes_on()
        now = read()
        yield gained(before, now)
        before = now
        if not more:
            return
        sleep(POLL_S)


def gained(before: str, now: str) -> str:
    """Return the lines of `now` after those of `before`; all of it if nothing of `before` is left."""
    if now.startswith(before):
        return now[len(before) :]
    last = before.rstrip("\n").rsplit("\n", 1)[-1] + "\n"
    at = now.rfind(last)
    return now if at < 0 else now[at + len(last) :]


def trial_named(folder: SweepFolder, name: str) -> str:
    """Return the id of the trial with this id or name. Raises UserError with the closest match."""
    ids = folder.store.list_folders("trials")
    if name in ids:
        return name
    starting = [trial for trial in ids if trial.startswith(f"{name}-")]
    if len(starting) == 1:
        return starting[0]
    if starting:
        raise UserError(f"trial {name!r}: {len(starting)} of them; give one of {', '.join(starting)}")
    raise UserError(f"trial {name!r}: none of that name has begun{nearest(name, ids)}")


def _goes_on(folder: SweepFolder, target: Target) -> Callable[[], bool]:
    def goes_on() -> bool:
        driver = read_driver(folder.store)
        state, now_s = state_of(driver, time.time()), time.time()
        if driver is not None and state == LOST:
            how = resume_command(folder.store.url, target.options)
            raise ClusterLostError(
                f"the sweep's driver ({driver.where}) was last seen {span(now_s - driver.seen_s)} ago; "
                f"what was trained is saved, go on by `{how}`"
            )
        return state == RUNNING

    return goes_on


def _text(folder: SweepFolder) -> str:
    size = folder.store.size(LOG_FILE) or 0
    start = max(0, size - LOG_BYTES)
    try:
        return folder.store.read_range(LOG_FILE, start, size - start).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _lines(records: list[dict[str, Any]]) -> str:
    return "".join(_line(record) + "\n" for record in records)


def _line(record: dict[str, Any]) -> str:
    shown = {
        "train/l0": "L0",
        "train/fvu": "FVU",
        "eval/fvu": "validation FVU",
        "test/fvu": "test FVU",
        "perf/rows_per_s": "rows/s",
        "data/wait": "data wait",
    }
    values = [f"{label} {record[key]:,.4g}" for key, label in shown.items() if isinstance(record.get(key), int | float)]
    return f"step {record['step']:,}: " + ", ".join(values)


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
