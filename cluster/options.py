"""Options that several commands share, and the console for their messages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from lexray.cluster.consoles import TextConsole
from lexray.cluster.provisioned.connection import Target

messages = TextConsole(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Address = Annotated[str | None, typer.Option(help="Dashboard of the cluster's head, as http://HOST:8265.")]
Cluster = Annotated[
    Path | None, typer.Option(help="File that describes the cluster, as `terraform output -json` prints it.")
]
TokenFile = Annotated[
    Path | None, typer.Option(help="File that holds the cluster's token.", envvar="RAY_AUTH_TOKEN_PATH")
]
Trust = Annotated[
    bool, typer.Option("--trust", help="Agree that the token goes to this cluster; remembered, else asked once.")
]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Send the token over plain http to another machine; anybody between reads it."),
]
SweepUrl = Annotated[str, typer.Argument(metavar="URL", help="Folder of the sweep.")]
SweepOrJob = Annotated[str, typer.Argument(metavar="URL|JOB", help="Folder of the sweep, or id of its job.")]


def target_of(
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
) -> Target:
    """Build the target cluster from a command's options."""
    cluster_name, file = (None if path is None else str(path) for path in (cluster, token_file))
    return Target(address=address, cluster=cluster_name, token_file=file, is_trusted=trust, is_insecure=insecure)


def names_cluster(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `target_of` in the place of its parameter `target`, which gets their result."""
    own, shared = (inspect.signature(function, eval_str=True).parameters for function in (command, target_of))

    @functools.wraps(command)
    def called(**given: Any) -> None:
        command(target=target_of(**{name: given.pop(name) for name in shared}), **given)

    groups = [shared.values() if name == "target" else [one] for name, one in own.items()]
    parameters = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for group in groups for one in group]
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called
