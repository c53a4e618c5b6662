"""The job server of a cluster, by its documented requests: ids of jobs, their state, what they say until they end.

Nothing that it says reaches the user raw. The same sweep's jobs are found by their ids, whoever submits them.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from lexray.cluster.provisioned.errors import ClusterLostError, NotFoundError
from lexray.cluster.provisioned.http import Dashboard
from lexray.cluster.ray_backend.package import Package
from lexray.storage.polling import poll

RUNNING = ("PENDING", "RUNNING")
STOPPED, FAILED, SUCCEEDED = "STOPPED", "FAILED", "SUCCEEDED"
KNOWS_ITSELF_S, LOOK_EVERY_S = 10.0, 0.5
"""For how long, and how often, a head is asked that names no node."""
PAUSE_S, LONGEST_PAUSE_S = 2.0, 30.0
BYTES_PER_S = 200_000
"""The job server gives a job's whole log each time: a long one is asked for less often."""
PREFIX = "lexray-"
HASH_CHARACTERS = 8
NAME_CHARACTERS = 40
OUTPUT, SWEEP = "lexray_output", "lexray_sweep"
"""Keys of a job's metadata."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sweep that was submitted."""

    id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    message: str = ""
    output: str = ""
    """Url of the sweep's folder."""
    sweep: str = ""
    started_s: float | None = None
    """Unix time."""
    ended_s: float | None = None

    @property
    def is_running(self) -> bool:
        return self.status in RUNNING


@dataclass(frozen=True)
class JobClient:
    """Asks the job server. Raises ClusterLostError where it does not answer, RefusedError where it refuses."""

    dashboard: Dashboard

    def jobs(self) -> list[Job]:
        """Return the jobs that lexray submitted, oldest first."""
        listed = [_job(found) for found in self.dashboard.get("/api/jobs/") if found.get("submission_id")]
        return sorted((job for job in listed if job.id.startswith(PREFIX)), key=lambda job: job.started_s or 0.0)

    def job(self, job_id: str) -> Job | None:
        """One of them, None where there is none."""
        try:
            return _job(self.dashboard.get(f"/api/jobs/{quote(job_id, safe='')}"))
        except NotFoundError:
            return None

    def attempts(self, base: str) -> list[Job]:
        """At one sweep, oldest first."""
        return [job for job in self.jobs() if attempt_of(job.id, base) is not None]

    def upload(self, package: Package) -> None:
        """Give the cluster a package that it does not have."""
        path = f"/api/packages/gcs/{package.name}"
        try:
            self.dashboard.get(path)
        except NotFoundError:
            self.dashboard.ask("PUT", path, content=package.content)

    def submit(
        self,
        job_id: str,
        entrypoint: str,
        package: Package,
        metadata: dict[str, str],
        environment: Mapping[str, Any],
    ) -> None:
        """Start a job, on the head, that has the package as its folder and this Python environment."""
        request = {
            "submission_id": job_id,
            "entrypoint": entrypoint,
            "runtime_env": {"working_dir": package.uri, **environment},
            "metadata": metadata,
        }
        self.dashboard.ask("POST", "/api/jobs/", document=request)

    def stop(self, job_id: str) -> None:
        """End a job: it is asked to, and killed seconds later."""
        self.dashboard.ask("POST", f"/api/jobs/{quote(job_id, safe='')}/stop")

    def logs(self, job_id: str) -> str:
        """All that it said, as far as the cluster keeps it."""
        answer = self.dashboard.get(f"/api/jobs/{quote(job_id, safe='')}/logs") or {}
        return str(answer.get("logs") or "")

    def nodes(self) -> list[dict[str, Any]]:
        """The living nodes as the cluster tells them: `node_ip`, `resources_total` (CPU, GPU, bytes of memory)."""
        answer = self.dashboard.get("/api/v0/nodes?detail=1&limit=10000")
        return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def some_nodes(self) -> list[dict[str, Any]]:
        """The same, of a head that may have started just now: it answers before it knows itself to be a node."""
        return poll(self.nodes, every_s=LOOK_EVERY_S, at_most_s=KNOWS_ITSELF_S)


def _job(found: dict[str, Any]) -> Job:
    metadata = found.get("metadata") or {}
    return Job(
        id=found["submission_id"],
        status=found["status"],
        message=" ".join((found.get("message") or "").split()),
        output=metadata.get(OUTPUT, ""),
        sweep=metadata.get(SWEEP, ""),
        started_s=_seconds(found.get("start_time")),
        ended_s=_seconds(found.get("end_time")),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def base_id(name: str, output_url: str) -> str:
    """Id of the first attempt at a sweep: its name, for people, and its folder."""
    shown = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:NAME_CHARACTERS].strip("-")
    folder = hashlib.sha256(output_url.encode()).hexdigest()[:HASH_CHARACTERS]
    return f"{PREFIX}{shown}-{folder}" if shown else f"{PREFIX}{folder}"


def attempt_of(job: str, base: str) -> int | None:
    """Which attempt a job is; None when it belongs to another sweep."""
    if job == base:
        return 1
    number = job.removeprefix(f"{base}-")
    return int(number) if number != job and number.isdecimal() and int(number) > 1 else None


def next_id(base: str, jobs: Iterable[str]) -> str:
    """Id of the attempt after all of these jobs."""
    newest = max((attempt for job in jobs if (attempt := attempt_of(job, base)) is not None), default=0)
    return base if newest == 0 else f"{base}-{newest + 1}"


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
