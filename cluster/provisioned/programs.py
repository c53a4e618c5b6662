"""Calls external programs: `kubectl`, `aws`, `terraform`, `ssh`. Every failure is one line that names the program.

A call of `ssh` runs a command on a host, or is a tunnel; it never prompts.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from lexray.cluster.provisioned.description import Ssh
from lexray.storage.errors import UserError, last_line

TIMEOUT_S = 60.0
WHERE_FROM = {
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "terraform": "https://developer.hashicorp.com/terraform/install",
    "ssh": "your system's package openssh-client",
    "aws": "https://docs.aws.amazon.com/cli (and the Session Manager plugin for tunnels)",
}
CONNECT_S = 10
SSH_TIMEOUT_S = 180.0
"""Time limit in seconds of a call by ssh, which may start Ray."""
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")


def missing(program: str) -> UserError:
    """Return the error for a program that is not installed."""
    return UserError(f"{program}: not found on PATH; install it ({WHERE_FROM.get(program, 'see its documentation')})")


def output_of(command: Sequence[str], timeout_s: float = TIMEOUT_S, *, given: str = "", what: str = "") -> str:
    """Return the stdout of a command; `given` is its stdin.

    Raises UserError with `what` (by default the beginning of the command) and the last line of its stderr.
    """
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, errors="replace", timeout=timeout_s)
    except FileNotFoundError as error:
        raise missing(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{what or ' '.join(command[:2])}: no answer in {timeout_s:.0f} s") from error
    if done.returncode:
        raise UserError(f"{what or ' '.join(command[:3])}: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


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
    return output_of(call, SSH_TIMEOUT_S, given=given, what=f"ssh {access.host}")
