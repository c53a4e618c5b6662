"""`ssh`, as far as lexray calls it: a command or a program of ours on a host, and a tunnel. It never asks anything."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lexray.cluster.provisioned.description import Ssh
from lexray.cluster.provisioned.programs import last_line, missing
from lexray.storage.errors import UserError

CONNECT_S = 10
TIMEOUT_S = 180.0
"""How long a call may take: Ray starts meanwhile."""
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
AGENT = ("ray_keeper", "ssh_agent")
"""Modules that are sent to a host, in the order of their imports."""
FIRST = "import json; exec(json.loads(input()))"
"""Short, in the list of processes, and one line, which every shell can quote."""
RUN = """
import sys, types
for name, text in json.loads(input()):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.answer(json.loads(input()))
"""


def ssh_command(access: Ssh, *options: str) -> list[str]:
    """Return the call of `ssh` to a host; what it shall run there follows."""
    user = ["-l", access.user] if access.user is not None else []
    key = ["-i", access.key] if access.key is not None else []
    ours = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}", *ALIVE]
    return ["ssh", *ours, *user, *key, *options, "--", access.host]


def forward_command(access: Ssh, local_port: int) -> list[str]:
    """Return the call of `ssh` that forwards a port of 127.0.0.1 to the dashboard as long as it runs.

    A connection that is shared with other calls (ControlMaster) would listen in another process, that of nobody knows
    whom.
    """
    address = f"[{access.address}]" if ":" in access.address else access.address
    return ssh_command(
        access, "-N", "-S", "none", "-o", "ExitOnForwardFailure=yes", "-L",
        f"127.0.0.1:{local_port}:{address}:{access.port}",
    )  # fmt: skip


def output_at(access: Ssh, command: Sequence[str], given: str = "") -> str:
    """Return what a command prints on a host, `given` its stdin. Raises UserError with the last line on stderr."""
    call = [*ssh_command(access, "-T"), shlex.join(command)]
    try:
        done = subprocess.run(call, input=given, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except FileNotFoundError as error:
        raise missing("ssh") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"ssh {access.host}: no answer in {TIMEOUT_S:.0f} s") from error
    if done.returncode:
        raise UserError(f"ssh {access.host}: {last_line(done.stderr) or f'exit code {done.returncode}'}")
    return done.stdout


def call_agent(access: Ssh, python: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return what `ssh_agent.answer` says on a host; its token travels on stdin, which no list of processes shows.

    Raises UserError naming the host.
    """
    command = [python, "-I", "-c", FIRST, "lexray", request["cluster"]]
    given = "".join(f"{line}\n" for line in program(request))
    said = last_line(output_at(access, command, given))
    try:
        answer: dict[str, Any] = json.loads(said)
    except ValueError as error:
        raise UserError(f"ssh {access.host}: {python} printed no answer; is it a Python?") from error
    if "error" in answer:
        raise UserError(f"{access.host}: {answer['error']}")
    return answer


def program(request: dict[str, Any]) -> list[str]:
    """Return the lines that `FIRST` reads on a host: what it runs, our modules by name, what is requested."""
    here = Path(__file__).parent
    sources = [(f"{__package__}.{name}", (here / f"{name}.py").read_text(encoding="utf-8")) for name in AGENT]
    return [json.dumps(one) for one in (RUN, sources, request)]
