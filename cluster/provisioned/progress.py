"""A plan of Terraform's carried out: how far it is, and what is there when it fails on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lexray.cluster.provisioned.errors import RefusedError
from lexray.cluster.provisioned.terraform import Terraform
from lexray.cluster.provisioned.terraform_plan import counted, counts
from lexray.storage.errors import UserError

Ask = Callable[[str], bool]
"""Whether the user agrees."""

EVERY_S = 10.0
"""Between lines where nobody looks at a terminal."""
SHOWN = 2
"""Things under way that are named."""


@dataclass(kw_only=True)
class Steps:
    """Counts what Terraform says that it has done."""

    total: int
    past: str
    """`made` or `removed`."""
    done: int = 0
    under_way: dict[str, None] = field(default_factory=dict)
    """Addresses, the oldest first."""

    def hear(self, line: dict[str, Any]) -> None:
        """One of the lines that Terraform prints."""
        address = line.get("hook", {}).get("resource", {}).get("addr", "")
        match line.get("type"):
            case "apply_start":
                self.under_way[address] = None
            case "apply_complete":
                self.done += 1
                self.under_way.pop(address, None)
            case "apply_errored":
                self.under_way.pop(address, None)

    @property
    def text(self) -> str:
        """`12 of 41 made, module.network.aws_nat_gateway.this[0] ...`"""
        named = list(self.under_way)[:SHOWN]
        others = len(self.under_way) - len(named)
        waiting = f", {', '.join(named)}{f' and {others} more' if others else ''} ..." if named else ""
        return f"{self.done} of {self.total} {self.past}{waiting}"


@contextmanager
def shown(
    steps: Steps, messages: Console, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """What it gives is called with each line of Terraform's."""
    last_s = clock()

    def tell(line: dict[str, Any]) -> None:
        nonlocal last_s
        steps.hear(line)
        if messages.is_terminal:
            status.update(Text(steps.text))
        elif clock() - last_s >= EVERY_S:
            last_s = clock()
            messages.print(steps.text, markup=False, highlight=False, soft_wrap=True)

    status = messages.status(Text(steps.text))
    if not messages.is_terminal:
        yield tell
        return
    with status:
        yield tell


def carry_out(terraform: Terraform, saved: Path, steps: Steps, advice: str, messages: Console) -> None:
    """Apply a saved plan. Raises RefusedError when it fails, after saying what is there and `advice`."""
    try:
        with shown(steps, messages) as on_line:
            terraform.apply(saved, on_line)
    except (RefusedError, KeyboardInterrupt) as error:
        types = terraform.state()
        say(messages, f"there now, and some of it costs money: {sum(counts(types).values())}: {counted(types)}")
        say(messages, advice)
        if isinstance(error, KeyboardInterrupt):
            raise
        raise RefusedError(f"{steps.done} of {steps.total} {steps.past}, then: {error}") from error


def refuse_unasked(command: str, does: str) -> UserError:
    """No terminal, and no word that none is needed."""
    return UserError(f"--yes: lexray {command} asks before it {does} anything, and there is no terminal; add --yes")


def say(messages: Console, line: str) -> None:
    """A line for people."""
    messages.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)
