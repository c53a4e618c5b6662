"""Jobs on a cluster that is to be removed: refuse the removal while they run, or have them save and end."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.follow.resolve import SweepRef
from lexray.cluster.follow.stop import stop
from lexray.cluster.jobs.job_client import RUNNING, JobClient
from lexray.cluster.lifecycle.kube_heads import of_jobs, ray_clusters
from lexray.cluster.lifecycle.machines import is_stopped
from lexray.cluster.provisioned.connection import Connection, Target, connect
from lexray.cluster.provisioned.description import ClusterDescription, Kubectl, Ssm
from lexray.cluster.provisioned.errors import ClusterLostError, RefusedError
from lexray.storage.errors import UserError

SHOWN = 3
"""Maximum number of jobs that a message names."""


def refuse_running(file: Path | None) -> None:
    """Raise UserError while anything runs on the cluster that `file` describes, or when it does not answer."""
    if file is None:
        raise UserError(
            "is a job running? The cluster was never made whole, and cannot be asked: give --force to remove it"
        )
    try:
        with connect(Target(cluster=str(file), is_trusted=True)) as connection:
            running = running_on(connection)
    except (UserError, ClusterLostError, RefusedError) as error:
        raise unasked(error) from error
    if running:
        others = f" and {len(running) - SHOWN} more" if len(running) > SHOWN else ""
        raise UserError(
            f"{len(running)} job(s) run on the cluster: {', '.join(running[:SHOWN])}{others}; wait, end them by "
            "`lexray stop`, or give --force: they save and end first"
        )


def has_no_head(description: ClusterDescription | None) -> bool:
    """Return whether no head runs, as after its deadline or after its Ray cluster was deleted.

    Raises UserError when Kubernetes cannot be asked, or has Ray clusters of jobs, which no description leads to.
    """
    access = description.access if description is not None else None
    region = description.region if description is not None else None
    if isinstance(access, Ssm):
        return is_stopped(access.autoscaling_group, region)
    if not isinstance(access, Kubectl):
        return False
    try:
        clusters = ray_clusters(access, region)
    except UserError as error:
        raise unasked(error) from error
    if jobs := of_jobs(clusters, access):
        raise UserError(
            f"{len(jobs)} Ray cluster(s) of jobs run: {', '.join(jobs[:SHOWN])}; wait, end them by `kubectl delete "
            f"rayjob --namespace {access.namespace} NAME`, or give --force"
        )
    return not clusters


def unasked(error: Exception) -> UserError:
    """Return the error for a cluster whose jobs cannot be listed."""
    return UserError(
        f"is a job running? The cluster cannot be asked ({error}): make it reachable, or give --force to remove it "
        "whatever runs"
    )


def running_on(connection: Connection) -> list[str]:
    """Return the ids of all running jobs, lexray's or not."""
    found = [job for job in connection.dashboard.get("/api/jobs/") if job["status"] in RUNNING]
    return [str(job.get("submission_id") or f"driver {job.get('job_id')}") for job in found]


def drain(file: Path, messages: Console) -> None:
    """Have every sweep save and end, and wait; an unreachable cluster is left as it is."""
    try:
        with connect(Target(cluster=str(file), is_trusted=True)) as connection:
            client = JobClient(connection.dashboard)
            for job in client.jobs():
                if not job.is_running:
                    continue
                try:
                    stopped = stop(SweepRef(url=job.output, job=job), connection, force=False, messages=messages)
                    say(messages, f"{job.id}: {stopped.state}; `lexray resume {job.output}` goes on elsewhere")
                except UserError as error:  # its folder is unreachable from here: only its job can be stopped
                    say(messages, f"{job.id}: ended without waiting until it has saved ({error})")
                    client.stop(job.id)
    except (UserError, ClusterLostError, RefusedError) as error:
        say(messages, f"not drained, the cluster cannot be asked: {error}")
