"""Calls external programs: `kubectl`, `aws`, `terraform`. Every failure is one line that names the program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from lexray.storage.errors import UserError, last_line

TIMEOUT_S = 60.0
WHERE_FROM = {
    "kubectl": "https://kubernetes.io/docs/tasks/tools",
    "terraform": "https://developer.hashicorp.com/terraform/install",
    "ssh": "your system's package openssh-client",
    "aws": "https://docs.aws.amazon.com/cli (and the Session Manager plugin for tunnels)",
}


def missing(program: str) -> UserError:
    """Return the error for a program that is not installed."""
    return UserError(f"{program}: not found on PATH; install it ({WHERE_FROM.get(program, 'see its documentation')})")


def output_of(command: Sequence[str], timeout_s: float = TIMEOUT_S) -> str:
    """Return the stdout of a command. Raises UserError with the last line of its stderr."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    except FileNotFoundError as error:
        raise missing(command[0]) from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} {command[1]}: no answer in {timeout_s:.0f} s") from error
    if done.returncode:
        raise UserError(f"{' '.join(command[:3])}: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout
