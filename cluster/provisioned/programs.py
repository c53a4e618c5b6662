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
