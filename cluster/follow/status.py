"""Runs `lexray status`: reads the sweep's folder, so that it works without the cluster."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.table import Table

from lexray.cluster.consoles import TextConsole, plain_table
from lexray.cluster.follow.resolve import connected_if_told, resolve
from lexray.cluster.follow.sweep_status import LEFT, LOST, UNKNOWN, SweepStatus, TrialStatus, sweep_status
from lexray.cluster.jobs.job_client import Job
from lexray.cluster.output import moment, print_json, resume_command, span
from lexray.cluster.provisioned.connection import Connection, Target
from lexray.cluster.provisioned.kubernetes import pending_pods
from lexray.storage.errors import UserError
from lexray.tuning.driver_record import RUNNING

SHOWN = 40
"""Maximum number of trials listed; of a larger sweep only running, failed and left ones, and counts of the others."""


def run_status(text: str, target: Target, as_json: bool) -> None:
    """Print the state on stdout. Raises UserError where neither a sweep nor a job is found."""
    with connected_if_told(target) as connection:
        found = resolve(text, connection)
        pending = _pending(connection)
    try:
        status = sweep_status(found.folder, time.time())
    except UserError:
        if found.job is None:
            raise
        _print_job(found.job, pending, as_json)  # it has not begun, or its folder cannot be read from here
        return
    if as_json:
        job = None if found.job is None else vars(found.job)
        print_json(status.to_dict() | {"job": job, "pending_pods": pending})
        return
    print_status(status, found.job, pending)


def print_status(status: SweepStatus, job: Job | None, pending: Sequence[str] = ()) -> None:
    """Print the sweep's summary and its trials; `pending` says why pods of its cluster do not start."""
    out = TextConsole()
    lines = [*_lines(status), *(("pods", line) for line in pending)]
    for name, value in [*lines, *([("job", f"{job.id}: {job.status}")] if job is not None else [])]:
        out.print(f"{name:<10}{value}", soft_wrap=True)
    listed = status.trials
    if len(listed) > SHOWN:
        listed = [trial for trial in listed if trial.status in ("running", "failed", LEFT)][:SHOWN]
    if listed:
        out.print(_table(listed))
    others = Counter(trial.status for trial in status.trials if trial not in listed)
    if others:
        out.print("and " + ", ".join(f"{count} {name}" for name, count in others.items()))


def _pending(connection: Connection | None) -> list[str]:
    """Return why pods of the cluster do not start, or why Kubernetes does not answer."""
    if connection is None or connection.description is None:
        return []
    try:
        return pending_pods(connection.description)
    except UserError as error:
        return [f"unknown: {error}"]


def _lines(status: SweepStatus) -> list[tuple[str, str]]:
    done, steps = status.steps
    lines = [("sweep", status.url), ("state", state_line(status))]
    lines += [("trials", ", ".join(f"{n} {name}" for name, n in status.counts.items()) or "none yet")]
    lines += [("steps", f"{done:,} of {steps:,}")]
    if status.rows_per_s:
        wait = f", {status.data_wait:.0%} waiting for data" if status.data_wait is not None else ""
        lines += [("speed", f"{status.rows_per_s:,.0f} rows/s{wait}")]
    if status.left_s is not None:
        lines += [("left", f"{span(status.left_s)} at this speed")]
    driver = status.driver
    if driver is not None and status.state == RUNNING:
        lines += [("waiting", line) for line in driver.waiting]
    if driver is not None and driver.links:
        lines += [("W&B", page) for page in sorted({link.split("/runs/")[0] for link in driver.links.values()})]
    return [*lines, ("report", f"{status.url}/report.html")]


def state_line(status: SweepStatus) -> str:
    """Return the state of the sweep, with the command that resumes it if it does not run."""
    driver = status.driver
    if driver is None or status.state == UNKNOWN:
        return f"nobody runs it; `{resume_command(status.url)}` does"
    seen = f"{span(status.silent_s or 0.0)} ago"
    if status.state == RUNNING:
        return f"running on {driver.where}, since {moment(driver.started_s)} UTC, last seen {seen}"
    if status.state == LOST:
        return f"its driver ({driver.where}) was last seen {seen}; `{resume_command(status.url)}` goes on"
    unfinished = any(not trial.is_over for trial in status.trials)
    reason = f": {driver.reason}" if driver.reason else ""
    how = f"; `{resume_command(status.url)}` goes on" if unfinished else ""
    return f"{status.state} {seen}{reason}{how}"


def _table(trials: list[TrialStatus]) -> Table:
    rows = []
    for trial in trials:
        speed = "" if trial.rows_per_s is None else f"{trial.rows_per_s:,.0f}"
        wait = "" if trial.data_wait is None else f"{trial.data_wait:.0%}"
        rows.append((trial.name, trial.status, f"{trial.step:,}/{trial.steps:,}", speed, wait, trial.reason))
    numbers = ("step", "rows/s", "data wait")
    return plain_table(("trial", "status", *numbers, ""), rows, right=numbers)


def _print_job(job: Job, pending: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({"url": job.output, "state": job.status.lower(), "job": vars(job), "pending_pods": pending})
        return
    print(f"job {job.id}: {job.status}, {job.message}")
    for line in pending:
        print(f"pods {line}")
    print(f"nothing can be read at {job.output} yet; what the job says: `lexray logs {job.id} --address URL`")
