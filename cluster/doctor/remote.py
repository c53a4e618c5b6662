"""Runs the doctor as a job on a cluster of which only the dashboard is reachable, and reads its log."""

from __future__ import annotations

import json
import shlex
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from lexray.cluster.doctor.verdict import Check, checks_of, fail, listed, ok, skipped, warn
from lexray.cluster.jobs.environment import job_environment
from lexray.cluster.jobs.job_client import Job, JobClient
from lexray.cluster.provisioned.connection import Connection, Target, connect
from lexray.cluster.provisioned.description import SETUP_TIMEOUT_S, ClusterDescription, Kubectl
from lexray.cluster.provisioned.kubernetes import pending_pods
from lexray.cluster.ray_backend.package import SWEEP_FILE, package
from lexray.storage.errors import UserError, last_line
from lexray.storage.objects.options import insecure_prefix

PREFIX = "doctor-"
LONGEST_S = 60.0
"""Time limit in seconds of a job beyond installing; the doctor ends sooner, the rest is for starting it."""
PAUSE_S = 0.5


def diagnose_by_job(
    target: Target,
    sweep_text: str | None,
    arguments: Sequence[str],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[str, list[Check]]:
    """Return the cluster's name and its checks. Raises UserError, ClusterLostError, RefusedError.

    `sweep_text` is the sweep file's, None without one; `arguments` are further options of `lexray doctor`, with values
    that hold on the cluster.
    """
    with connect(target) as connection:
        client, job_id = JobClient(connection.dashboard), f"{PREFIX}{uuid.uuid4().hex[:12]}"
        made = package(sweep_text or "")
        client.upload(made)
        environment = job_environment(connection.description, connection.ray_version)
        client.submit(
            job_id, entrypoint(arguments, connection, has_sweep=sweep_text is not None), made, {}, environment
        )
        longest_s = LONGEST_S + (SETUP_TIMEOUT_S if environment else 0)
        job = _awaited(client, job_id, clock() + longest_s, clock, sleep)
        log = client.logs(job_id)
        document = document_in(log)
        name, pods = connection.name, check_pods(connection.description)
    return name, [*(checks_of(document) if document is not None else [_no_answer(job, log)]), *pods]


def check_pods(cluster: ClusterDescription | None) -> list[Check]:
    """Check that no pod of a cluster in Kubernetes is pending; empty for other clusters."""
    if cluster is None or not isinstance(cluster.access, Kubectl):
        return []
    try:
        pending = pending_pods(cluster)
    except UserError as error:
        return [skipped(str(error), name="pods")]
    if pending:
        return [warn(listed(pending), "wait for a node that is on its way, or mend what the line names", name="pods")]
    return [ok("no pod of the namespace waits", name="pods")]


def entrypoint(arguments: Sequence[str], connection: Connection, *, has_sweep: bool) -> str:
    """Return the job's entrypoint, run in the package's folder."""
    doctor = ["python", "-m", "lexray", "doctor", "--address", "auto", "--is-job", "--json"]
    command = [*insecure_prefix(), *doctor, *arguments, *([SWEEP_FILE] if has_sweep else [])]
    region = connection.description.region if connection.description is not None else None
    return shlex.join([*command, *(["--region", region] if region is not None else [])])


def document_in(log: str) -> dict[str, Any] | None:
    """Find the job's JSON document in its log; None if there is none."""
    lines = log.splitlines()
    for begin in (number for number, line in enumerate(lines) if line == "{"):
        end = next((number for number in range(begin, len(lines)) if lines[number] == "}"), begin)
        try:
            found = json.loads("\n".join(lines[begin : end + 1]))
        except ValueError:
            continue
        if "checks" in found:
            return dict(found)
    return None


def _awaited(
    client: JobClient, job_id: str, until_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Job | None:
    """Wait until the job ends or its time is over; stop it then."""
    while True:
        job = client.job(job_id)
        if job is None or not job.is_running:
            return job
        if clock() >= until_s:
            client.stop(job_id)
            return job
        sleep(PAUSE_S)


def _no_answer(job: Job | None, log: str) -> Check:
    last = last_line(log) or "its log is empty"
    why = "the cluster knows its job no more" if job is None else f"its job is {job.status} ({last})"
    advice = "look at the job's log in the dashboard; the head needs lexray's packages and room for one process"
    return fail(f"the doctor did not answer: {why}", advice, name="job")
