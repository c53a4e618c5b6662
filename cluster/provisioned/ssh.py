"""Builds and runs calls of `ssh`: a command on a host, and a tunnel. It never prompts."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from lexray.cluster.provisioned.description import Ssh
from lexray.cluster.provisioned.programs import output_of

CONNECT_S = 10
TIMEOUT_S = 180.0
"""Time limit in seconds of a call, which may start Ray."""
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")


def ssh_command(access: Ssh, *options: str) -> list[str]:
    """Return the `ssh` call to a host; append the command to run there."""
    user = ["-l", access.user] if access.user is not None else []
    key = ["-i", access.key] if access.key is not None else []
    ours = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", *ALIVE]
    return ["ssh", *ours, *user, *key, *options, "--", access.host]


def forward_command(access: Ssh, local_port: int) -> list[str]:
    """Return the `ssh` call that forwards a port of 127.0.0.1 to the dashboard while it runs.

    It shares no connection (ControlMaster): then another process would listen, of unknown owner.
    """
    address = f"[{access.address}]" if ":" in access.address else access.address
    return ssh_command(
        access, "-N", "-S", "none", "-o", "ExitOnForwardFailure=yes", "-L",
        f"127.0.0.1:{local_port}:{address}:{access.port}",
    )  # fmt: skip


def output_at(access: Ssh, command: Sequence[str], given: str = "") -> str:
    """Return the stdout of a command on a host; `given` is its stdin. Raises UserError with the last line of stderr."""
    call = [*ssh_command(access, "-T"), shlex.join(command)]
    return output_of(call, TIMEOUT_S, given=given, what=f"ssh {access.host}")
