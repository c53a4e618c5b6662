"""Submit a sweep: check it, show its plan, send it, unless it runs already."""

from __future__ import annotations

import shlex
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lexray.cluster.jobs.environment import job_environment
from lexray.cluster.jobs.job_client import OUTPUT, SWEEP, JobClient, base_id, next_id
from lexray.cluster.provisioned.connection import Connection
from lexray.cluster.provisioned.description import ClusterDescription, Pool
from lexray.cluster.provisioned.errors import RefusedError
from lexray.cluster.provisioned.pools import pools_option, startable
from lexray.cluster.ray_backend.package import SWEEP_FILE, package
from lexray.storage.config_file import checked_content, mapping_of
from lexray.storage.errors import UnreachableError, UserError
from lexray.storage.objects.options import insecure_prefix
from lexray.storage.store import Store, reachable
from lexray.tuning.placement.memory_split import memory_split

if TYPE_CHECKING:
    from lexray.tuning.file.sweep_file import SweepFile
    from lexray.tuning.planning.plan import Machines, Plan


BUSY_PAUSES_S = (2.0, 4.0, 8.0)
"""Seconds before each retry of starting a job on a busy head."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Result of a submission."""

    job: str
    """Job id; empty if there was nothing to do."""
    url: str
    """Folder of the sweep."""
    is_new: bool
    """False if this sweep was already running or finished."""
    bytes: int = 0
    """Maximum number of uploaded bytes."""
    plan: Plan | None = None
    """The sweep's plan; None if it cannot be computed here."""
    unplanned: str = ""
    """Reason for a missing plan."""


def scratch_warning(output: str, description: ClusterDescription | None) -> str:
    """Return a line when a sweep's output lies where the cluster's bucket deletes everything; else empty."""
    scratch = description.scratch_url if description is not None else None
    if scratch is None or not f"{output}/".startswith(f"{scratch.rstrip('/')}/"):
        return ""
    assert description is not None
    when = f"after {description.scratch_days} days" if description.scratch_days else "by its bucket's own rules"
    instead = f"; use a folder under {description.runs_url}" if description.runs_url else ""
    return f"output: {output} is scratch, what lies there is deleted {when}, checkpoints and dictionaries too{instead}"


def sweep_of(text: str, where: str) -> SweepFile:
    """Parse and validate a sweep file's text. Raises UserError naming `where` it was read and the field."""
    from lexray.tuning.file.sweep_file import SweepFile

    return checked_content(where, mapping_of(text, where), SweepFile)


def submit(connection: Connection, sweep: SweepFile, text: str, *, on_plan: Callable[[Plan], None]) -> Submission:
    """Start the sweep as a job, or find that it runs; `on_plan` sees the plan before anything is sent.

    Raises UserError for what the job would refuse.
    """
    client = JobClient(connection.dashboard)
    environment = job_environment(connection.description, connection.ray_version)
    nodes = client.some_nodes()
    _refuse_local(sweep, connection, nodes)
    output = Store.at(sweep.output, sweep.storage)
    base = base_id(sweep.name, output.url)
    attempts = client.attempts(base)
    if attempts and attempts[-1].is_running:
        return Submission(job=attempts[-1].id, url=output.url, is_new=False)
    made, unplanned = _planned(connection, sweep, text, nodes)
    if made is not None:
        on_plan(made)
        if not made.to_do:
            return Submission(job="", url=output.url, is_new=False, plan=made)
    _refuse_driven(output)
    sent = package(text)
    client.upload(sent)
    job = next_id(base, [attempt.id for attempt in attempts])
    command = entrypoint(job, connection.name, startable(connection.description))
    metadata = {OUTPUT: output.url, SWEEP: sweep.name}
    _start(client, job, lambda: client.submit(job, command, sent, metadata, environment))
    return Submission(job=job, url=output.url, is_new=True, bytes=len(sent.content), plan=made, unplanned=unplanned)


def _start(client: JobClient, job: str, start: Callable[[], None], sleep: Callable[[float], None] = time.sleep) -> None:
    """Start the job; retry while a newly started head is busy."""
    for pause_s in (*BUSY_PAUSES_S, None):
        try:
            start()
            return
        except RefusedError as error:
            if client.job(job) is not None:
                raise UserError(
                    f"job {job}: submitted by somebody else just now; follow it by `lexray logs {job} -f`"
                ) from None
            if pause_s is None or not error.is_busy:
                raise
            sleep(pause_s)


def entrypoint(job: str, cluster: str, pools: Sequence[Pool] = ()) -> str:
    """Return the job's entrypoint, run in the package's folder; `pools` can still launch nodes."""
    sweep = [*insecure_prefix(), "python", "-m", "lexray", "sweep", SWEEP_FILE, "--address", "auto", "--job", job]
    return shlex.join([*sweep, *pools_option(pools), "--cluster-name", cluster])


def _refuse_local(sweep: SweepFile, connection: Connection, nodes: Sequence[dict[str, Any]]) -> None:
    """Refuse folders of this machine that the cluster's nodes cannot reach."""
    description = connection.description
    urls = {"output": sweep.output, "data.url": sweep.data.url}
    local = {field: url for field, url in urls.items() if Store.at(url).local_path is not None}
    shared = [url for url in (description.runs_url, description.data_url) if url] if description is not None else []
    local = {field: url for field, url in local.items() if not any(url.startswith(prefix) for prefix in shared)}
    if local and (connection.is_tunnelled or not all_are_here(nodes)):
        field, url = next(iter(local.items()))
        raise UserError(
            f"{field}: {url} is a folder of this machine, which the {len(nodes)} node(s) of {connection.name} do not "
            "have; give a url that they can reach, like s3://BUCKET/FOLDER"
        )
    for field, url in local.items():
        if not url.startswith(("file://", "/")):
            raise UserError(f"{field}: {url} is relative, and the job runs elsewhere; give {Store.at(url).local_path}")


def _planned(
    connection: Connection, sweep: SweepFile, text: str, nodes: Sequence[dict[str, Any]]
) -> tuple[Plan | None, str]:
    """Plan for the cluster's nodes; None and the reason if dataset or folder is unreachable from here."""
    from lexray.tuning.planning.plan_file import known_speeds
    from lexray.tuning.sweep_plan import check_room, plan_sweep

    machines = machines_of(connection.description, nodes)
    try:
        plan = plan_sweep(sweep, text)
    except UnreachableError as error:
        return None, str(error)
    gpu_gib = sweep.resources.gpu_memory_gib or gpu_memory_gib(connection.description)
    resources = replace(sweep.resources, gpu_memory_gib=gpu_gib)
    plan = check_room(replace(plan, sweep=sweep.model_copy(update={"resources": resources})), machines)
    return plan.make(machines, known_speeds(plan.folder, [trial.id for trial in plan.trials])), ""


def _refuse_driven(output: Store) -> None:
    """Refuse a sweep that another driver runs; the job itself would notice only later."""
    from lexray.tuning.driver_record import is_alive, is_dead_here, read_driver, this_place

    try:
        with reachable("output", output.url):
            record = read_driver(output)
    except UnreachableError:
        return
    if record is not None and is_alive(record, time.time()) and not is_dead_here(record, this_place()):
        raise UserError(
            f"output: {output.url} is being run by {record.where}; follow it by `lexray status {output.url}`, "
            f"end it by `lexray stop {output.url}`, or wait 90 s if you know that it is dead"
        )


def machines_of(description: ClusterDescription | None, nodes: Sequence[dict[str, Any]]) -> Machines:
    """Return the described pools at their largest, or else the current nodes."""
    from lexray.tuning.placement.nodes import Node, trials_on_head
    from lexray.tuning.planning.plan import Machines

    totals = [node["resources_total"] for node in nodes]
    most = trials_on_head(totals)
    if description is not None and description.pools:
        pools = [pool for pool in description.pools for _ in range(pool.max_nodes)]
        stores = [memory_split(pool.memory_gib).store for pool in pools]
        return Machines(nodes=[_node(pool) for pool in pools], object_store_bytes=stores, trials_on_head=most)
    return Machines(
        nodes=[
            Node(cpus=float(t.get("CPU", 0.0)), gpus=float(t.get("GPU", 0.0)), memory_bytes=float(t.get("memory", 0.0)))
            for t in totals
        ],
        object_store_bytes=[int(total.get("object_store_memory", 0)) for total in totals],
        trials_on_head=most,
    )


def gpu_memory_gib(description: ClusterDescription | None) -> float | None:
    """Memory of the pools' smallest GPU; None if no pool states it."""
    pools = description.pools if description is not None else ()
    return min((pool.gpu_memory_gib for pool in pools if pool.gpus and pool.gpu_memory_gib), default=None)


def all_are_here(nodes: Sequence[dict[str, Any]]) -> bool:
    """Return whether every node is this machine, so that local folders are visible to them."""
    return bool(nodes) and all(_is_own_address(str(node["node_ip"])) for node in nodes)


def _node(pool: Pool) -> Any:
    from lexray.tuning.placement.nodes import Node

    return Node(pool.cpus, float(pool.gpus), float(memory_split(pool.memory_gib).heap), zone=pool.zone)


def _is_own_address(address: str) -> bool:
    """Return whether the address is this machine's: only then can a socket bind to it."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
