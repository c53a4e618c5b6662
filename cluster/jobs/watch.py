"""Follow a job by what the job server tells, until it ends or its cluster is gone."""

from __future__ import annotations

import time
from collections.abc import Callable

from lexray.cluster.jobs.job_client import Job, JobClient
from lexray.cluster.provisioned.errors import ClusterLostError

PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
BYTES_PER_S = 200_000
"""The job server gives a job's whole log each time: a long one is asked for less often."""


def pause_s(log_bytes: int) -> float:
    """Until the next question."""
    return min(LONGEST_PAUSE_S, max(PAUSE_S, log_bytes / BYTES_PER_S))


def follow_job(
    client: JobClient,
    job_id: str,
    emit: Callable[[str], None],
    *,
    how_to_resume: str,
    sleep: Callable[[float], None] = time.sleep,
) -> Job:
    """The job when it has ended; `emit` gets what it says, each piece once.

    Raises ClusterLostError, saying how to resume, when the cluster does not answer or does not know the job any more.
    """
    told = 0
    try:
        while True:
            job = client.job(job_id)
            if job is None:
                raise ClusterLostError(f"{client.dashboard.what} knows job {job_id} no more: its head was replaced")
            said = client.logs(job_id)
            emit(said[told:])
            told = len(said)
            if not job.is_running:
                return job
            sleep(pause_s(told))
    except ClusterLostError as error:
        raise ClusterLostError(f"{error}; what was trained is saved, go on by `{how_to_resume}`") from error
