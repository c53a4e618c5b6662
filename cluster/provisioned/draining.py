"""What runs on a cluster that is to go: refused while something does, or asked to save and end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from cluster.follow.stop import stop
from cluster.follow.which import Meant
from cluster.jobs.job_client import RUNNING, JobClient
from cluster.provisioned.connection import Connection, Target, connect
from cluster.provisioned.errors import ClusterLostError, RefusedError
from cluster.provisioned.progress import say
from storage.errors import UserError

SHOWN = 3
"""Jobs that are named."""


def refuse_running(file: Path | None) -> None:
    """Raises UserError while anything runs on the cluster that `file` describes, or when it cannot be asked."""
    if file is None:
        raise UserError(
            "is a job running? The cluster was never made whole, and cannot be asked: give --force to remove it"
        )
    try:
        with connect(Target(cluster=str(file))) as connection:
            running = running_on(connection)
    except (UserError, ClusterLostError, RefusedError) as error:
        raise UserError(
            f"is a job running? The cluster cannot be asked ({error}): make it reachable, or give --force to remove it "
            "whatever runs"
        ) from error
    if running:
        others = f" and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
        raise UserError(
            f"{len(running)} job(s) run on the cluster: {', '.join(running[:SHOWN])}{others}; wait, end them by "
            "`lexray stop`, or give --force: they save and end first"
        )


def running_on(connection: Connection) -> list[str]:
    """Ids of everything that runs there, lexray's or not."""
    found = [job for job in connection.dashboard.get("/api/jobs/") if job["status"] in RUNNING]
    return [str(job.get("submission_id") or f"driver {job.get('job_id')}") for job in found]


def drain(file: Path, messages: Console) -> None:
    """Ask every sweep to save and end, and wait a while. A cluster that cannot be asked is left as it is."""
    try:
        with connect(Target(cluster=str(file))) as connection:
            client = JobClient(connection.dashboard)
            for job in client.jobs():
                if not job.is_running:
                    continue
                try:
                    stopped = stop(Meant(url=job.output, job=job), connection, force=False, messages=messages)
                    say(messages, f"{job.id}: {stopped.state}; `lexray resume {job.output}` goes on elsewhere")
                except UserError as error:  # its folder cannot be reached from here: then its driver hears of it alone
                    say(messages, f"{job.id}: ended without waiting until it has saved ({error})")
                    client.stop(job.id)
    except (UserError, ClusterLostError, RefusedError) as error:
        say(messages, f"not drained, the cluster cannot be asked: {error}")
