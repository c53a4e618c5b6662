"""Resolve what a user names to a sweep: the url of its folder, or the id of a job that a cluster knows."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from lexray.cluster.jobs.job_client import PREFIX, Job, JobClient
from lexray.cluster.provisioned.connection import Connection, Target, connect
from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.tuning.sweep_folder import SweepFolder


@dataclass(frozen=True, kw_only=True)
class SweepRef:
    """A sweep that a command is about."""

    url: str
    job: Job | None = None
    """Its newest job on the connected cluster."""

    @property
    def folder(self) -> SweepFolder:
        """Raises UserError where no sweep lies."""
        return SweepFolder.existing(self.url)


def connected_if_told(target: Target) -> AbstractContextManager[Connection | None]:
    """A connection where the user named a cluster."""
    return connect(target) if target else nullcontext()


def is_job(text: str) -> bool:
    """Whether a user's word is a job's id, and no folder."""
    return text.startswith(PREFIX) and "/" not in text


def resolve(text: str, connection: Connection | None) -> SweepRef:
    """Return the sweep that a text names. Raises UserError for a job that nobody knows."""
    client = JobClient(connection.dashboard) if connection is not None else None
    if is_job(text):
        if client is None:
            raise UserError(f"{text}: a job is known to its cluster; give --address or --cluster, or the sweep's url")
        job = client.job(text)
        if job is None or not job.output:
            known = ", ".join(other.id for other in client.jobs()[-5:]) or "none of lexray's"
            raise UserError(f"{text}: no such job on this cluster; its jobs: {known}")
        return SweepRef(url=job.output, job=job)
    url = Store.at(text).url
    jobs = [job for job in client.jobs() if job.output == url] if client is not None else []
    return SweepRef(url=url, job=jobs[-1] if jobs else None)
