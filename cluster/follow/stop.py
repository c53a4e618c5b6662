"""Runs `lexray stop`: requests a stop in the sweep's folder, waits for the driver to end, then ends its job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.follow.resolve import SweepRef, connected_if_told, resolve
from lexray.cluster.jobs.job_client import JobClient
from lexray.cluster.output import FAILED, OK, print_json, span
from lexray.cluster.provisioned.connection import Connection, Target
from lexray.storage.errors import UserError
from lexray.storage.polling import poll
from lexray.storage.store import Store
from lexray.tuning.driver_record import RUNNING, DriverRecord, is_alive, read_driver
from lexray.tuning.endings.budget import BY_HAND, write_ending

PATIENCE_S = 60.0
"""Seconds that the driver may take to save running trials and end."""
JOB_PATIENCE_S = 30.0
LOOK_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """Result of a stop."""

    url: str
    state: str
    """State of the driver: ended, failed, interrupted, running (not ended yet), lost or unknown."""
    job: str = ""
    """Id of the job that the job server ended; empty if none."""
    seconds: float = 0.0


def run_stop(text: str, force: bool, target: Target, messages: Console, as_json: bool) -> int:
    """Stop a sweep. Returns exit code 0 when nothing of it runs any more, else 1."""
    if force and not target:
        raise UserError("--force ends the sweep's job, which its cluster knows: give --address or --cluster, too")
    with connected_if_told(target) as connection:
        found = resolve(text, connection)
        stopped = stop(found, connection, force=force, messages=messages)
    if as_json:
        print_json(vars(stopped))
    else:
        print(_line(stopped))
    return FAILED if stopped.state == RUNNING else OK


def stop(
    found: SweepRef,
    connection: Connection | None,
    *,
    force: bool,
    messages: Console,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Stopped:
    """Request a stop, wait for it, and end the job if there is a connection; `force` does not wait."""
    began_s = clock()
    store = Store.at(found.url)
    driver = read_driver(store)
    if is_alive(driver, began_s):
        write_ending(store, BY_HAND)
        if not force:
            say(messages, f"asked {found.url} to save and end; waiting up to {PATIENCE_S:.0f} s")
            driver = _awaited(store, clock, sleep)
    job = ""
    if connection is not None and found.job is not None:
        client, ends_itself = JobClient(connection.dashboard), not force and not is_alive(driver, clock())
        if ends_itself:
            _await_job(client, found.job.id, clock, sleep)
        job = _end_job(client, found.job.id, clock, sleep)
        driver = read_driver(store)
    state = "unknown" if driver is None else driver.state
    if driver is not None and driver.state == RUNNING and (job or not is_alive(driver, clock())):
        state = "lost"
    return Stopped(url=found.url, state=state, job=job, seconds=clock() - began_s)


def _awaited(store: Store, clock: Callable[[], float], sleep: Callable[[float], None]) -> DriverRecord | None:
    return poll(
        lambda: read_driver(store),
        until=lambda driver: not is_alive(driver, clock()),
        every_s=LOOK_S,
        at_most_s=PATIENCE_S,
        clock=clock,
        sleep=sleep,
    )


def _end_job(client: JobClient, job_id: str, clock: Callable[[], float], sleep: Callable[[float], None]) -> str:
    """End the job; return its id, or empty if it was over."""
    job = client.job(job_id)
    if job is None or not job.is_running:
        return ""
    client.stop(job_id)
    _await_job(client, job_id, clock, sleep)
    return job_id


def _await_job(client: JobClient, job_id: str, clock: Callable[[], float], sleep: Callable[[float], None]) -> None:
    """Wait for the job's end, at most `JOB_PATIENCE_S`."""

    def is_over() -> bool:
        job = client.job(job_id)
        return job is None or not job.is_running

    poll(is_over, every_s=LOOK_S, at_most_s=JOB_PATIENCE_S, clock=clock, sleep=sleep)


def _line(stopped: Stopped) -> str:
    after = f"after {span(stopped.seconds)}"
    ended = f"; job {stopped.job} was ended" if stopped.job else ""
    if stopped.state == RUNNING:
        return (
            f"{stopped.url}: asked to end, but still running {after}; its trials end at their next look, "
            "or at once with --force and --address or --cluster"
        )
    if stopped.state == "unknown":
        hint = ended or "; a job that was submitted just now is ended with --address or --cluster"
        return f"{stopped.url}: nobody runs it{hint}"
    return f"{stopped.url}: {stopped.state} {after}{ended}; `lexray resume {stopped.url}` goes on"
