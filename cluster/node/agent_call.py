"""Call `ssh_agent` on a host, which needs Python and no lexray there: its source travels on stdin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lexray.cluster.provisioned.description import Ssh
from lexray.cluster.provisioned.programs import output_at
from lexray.storage.errors import UserError, last_line

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
