"""A plan of Terraform's carried out: what Terraform reports meanwhile, and what is there when it fails on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from lexray.cluster.consoles import say
from lexray.cluster.lifecycle.terraform import Line, Terraform
from lexray.cluster.lifecycle.terraform_plan import counted, counts
from lexray.cluster.provisioned.errors import RefusedError
from lexray.storage.errors import UserError

Ask = Callable[[str], bool]
"""Whether the user agrees."""
SHOWN = ("apply_progress", "apply_complete", "apply_errored")
"""Kinds of Terraform's lines that are shown, in its own words."""


def carry_out(terraform: Terraform, saved: Path, advice: str, messages: Console) -> None:
    """Apply a saved plan. Raises RefusedError when it fails, after saying what is there and `advice`."""

    def show(line: Line) -> None:
        if line.get("type") in SHOWN:
            say(messages, str(line.get("@message", "")))

    try:
        terraform.apply(saved, show)
    except (RefusedError, KeyboardInterrupt):
        types = terraform.state()
        say(messages, f"there now, and some of it costs money: {sum(counts(types).values())}: {counted(types)}")
        say(messages, advice)
        raise


def refuse_unasked(command: str, does: str) -> UserError:
    """No terminal, and no word that none is needed."""
    return UserError(f"--yes: lexray {command} asks before it {does} anything, and there is no terminal; add --yes")
