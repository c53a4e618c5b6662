"""Runs a Ray cluster inside a Slurm allocation: one process on each node, and a wait for all of them.

    python -m lexray.cluster.node.slurm_node FOLDER         by `srun`, once on each node; task 0 is the head
    python -m lexray.cluster.node.slurm_node FOLDER NODES   prints the head's address once all nodes are there

FOLDER is empty at first, the user's alone and visible on all nodes. The head leaves its token in it, and `cluster.json`
with `access.kind` ssh, for commands on a login node.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lexray.cluster.jobs.job_client import JobClient
from lexray.cluster.node.ray_keeper import STOPPED, free_port, keep
from lexray.cluster.node.ray_start import host_port, node_environment, start_arguments
from lexray.cluster.provisioned.description import ClusterDescription, Liveness, Ssh, TokenFile
from lexray.cluster.provisioned.errors import ClusterLostError, RefusedError
from lexray.cluster.provisioned.http import Dashboard
from lexray.cluster.provisioned.tokens import token_of_file
from lexray.storage.errors import UserError
from lexray.storage.polling import poll
from lexray.tuning.placement.memory_split import memory_split

HEAD, TOKEN, CLUSTER = "head.json", "token", "cluster.json"
START_S = 300.0
"""Seconds that nodes may take to start: a shared file system may show a new file late."""
LOOK_S = 1.0


def run_node(folder: Path, environ: Mapping[str, str]) -> int:
    """Run a node until SIGTERM or the end of its Ray; return the exit code."""
    address = address_towards(environ["SLURM_LAUNCH_NODE_IPADDR"])
    head = None
    if environ["SLURM_PROCID"] == "0":
        port, dashboard_port = free_port(), free_port()  # other allocations may have Rays on the same machine
        lead(folder, environ, address, port, dashboard_port)
    else:
        found = _awaited(lambda: _read_head(folder), f"{folder / HEAD}, which the head writes")
        head, port, dashboard_port = found["address"], found["port"], 0
        _awaited(lambda: _answers(head, port), f"the head at {head}:{port}")
    arguments = start_arguments(address, head=head, port=port, dashboard_port=dashboard_port)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": (folder / TOKEN).read_text()}
    env = node_environment(Liveness(), auth, head=host_port(head or address, port))
    with tempfile.TemporaryDirectory(prefix="lexray-") as own:
        why = keep(
            Path(own), {}, environ.get("RAY_TMPDIR", "/tmp"), [*arguments, *memory_arguments(environ)], env, sys.stdout
        )
    return 0 if why == STOPPED else 1


def lead(folder: Path, environ: Mapping[str, str], address: str, port: int, dashboard_port: int) -> None:
    """Write what others need to find the head and its token; `head.json` is last."""
    with os.fdopen(os.open(folder / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as token:
        token.write(secrets.token_hex(32))
    description = ClusterDescription(
        schema=1,
        name=f"slurm-{environ['SLURM_JOB_ID']}",
        provider="ray",
        access=Ssh(host=environ["SLURMD_NODENAME"], address=address, port=dashboard_port),
        token=TokenFile(path=str(folder.absolute() / TOKEN)),
    )
    (folder / CLUSTER).write_text(description.model_dump_json(by_alias=True, exclude_none=True, indent=1) + "\n")
    new = folder / f"{HEAD}.new"
    new.write_text(json.dumps({"address": address, "port": port, "dashboard_port": dashboard_port}))
    new.replace(folder / HEAD)


def wait(folder: Path, num_nodes: int) -> str:
    """Return `HOST:PORT` of the head once it lists `num_nodes` nodes. Raises UserError after `START_S`."""
    found = _awaited(lambda: _read_head(folder), f"{folder / HEAD}, which the head writes")
    dashboard = Dashboard(
        url=f"http://{host_port(found['address'], found['dashboard_port'])}",
        what="the allocation's head",
        token=token_of_file(str(folder / TOKEN)),
        is_insecure=True,  # this is the machine that it runs on
    )

    def are_there() -> bool:
        try:
            return len(JobClient(dashboard).nodes()) >= num_nodes
        except (UserError, ClusterLostError, RefusedError):  # it is about to start
            return False

    _awaited(are_there, f"{num_nodes} nodes to join the head")
    return host_port(found["address"], found["port"])


def address_towards(peer: str) -> str:
    """Return this machine's address on the route to another, without sending anything."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))
        return str(probe.getsockname()[0])


def memory_arguments(environ: Mapping[str, str]) -> list[str]:
    """Return arguments that divide Slurm's memory of a node; Ray itself would divide the whole machine's."""
    mib = int(environ.get("SLURM_MEM_PER_NODE", 0))
    mib = mib or int(environ.get("SLURM_MEM_PER_CPU", 0)) * int(environ.get("SLURM_CPUS_PER_TASK", 1))
    split = memory_split(mib / 1024)
    return [f"--memory={split.heap}", f"--object-store-memory={split.store}"] if mib else []


def _awaited(look: Callable[[], Any], what: str) -> Any:
    if not (found := poll(look, every_s=LOOK_S, at_most_s=START_S)):
        raise UserError(f"waited {START_S:.0f} s for {what}")
    return found


def _read_head(folder: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((folder / HEAD).read_text())
        return found
    except FileNotFoundError:
        return None


def _answers(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.settimeout(LOOK_S)
        return probe.connect_ex((address, port)) == 0


if __name__ == "__main__":
    try:
        if len(sys.argv) == 2:
            sys.exit(run_node(Path(sys.argv[1]), os.environ))
        print(wait(Path(sys.argv[1]), int(sys.argv[2])))
    except (UserError, OSError) as error:
        sys.exit(f"lexray: {error}")
