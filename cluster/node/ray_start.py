"""Arguments and environment of `ray start` on machines without an autoscaler, which other Rays may share."""

from __future__ import annotations

from collections.abc import Mapping

from lexray.cluster.provisioned.description import Liveness
from lexray.cluster.ray_backend.connect import PROCESS_ENV


def start_arguments(
    address: str, *, head: str | None, port: int, dashboard_port: int, cpus: int | None = None, gpus: int | None = None
) -> list[str]:
    """Return arguments of `ray start` on the machine at `address`; `head` is the address of its head, None on the head.

    Without `cpus` and `gpus` the machine's own are counted where Ray starts. Only the head's two ports are fixed; Ray's
    defaults for all others are the same for everybody.
    """
    if head is not None:
        role = [f"--address={host_port(head, port)}"]
    else:
        role = ["--head", f"--port={port}", "--include-dashboard=true",
                f"--dashboard-host={address}", f"--dashboard-port={dashboard_port}"]  # fmt: skip
    counts = {"--num-cpus": cpus, "--num-gpus": gpus}
    return [
        *role, f"--node-ip-address={address}", "--min-worker-port=0", "--max-worker-port=0",
        "--dashboard-agent-listen-port=0", "--disable-usage-stats", "--log-color=false",
        *(f"{option}={count}" for option, count in counts.items() if count is not None),
    ]  # fmt: skip


def node_environment(liveness: Liveness, extra: Mapping[str, str], *, head: str) -> dict[str, str]:
    """Return variables of every Ray process of a node but its token; `extra` are the user's and go first.

    `head` is its `HOST:PORT`: Ray Train's cleaner of stopped trials would else take the one Ray that it finds on the
    machine, and end where there are two.
    """
    return {**PROCESS_ENV, **liveness.ray_env, **extra, "RAY_ADDRESS": head}


def host_port(address: str, port: int) -> str:
    """Return `ADDRESS:PORT`, with brackets around an address of IPv6."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
