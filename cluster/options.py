"""Options that several commands share, and the console for their messages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    address: str | None, cluster: Path | None, token_file: Path | None, *, trust: bool, insecure: bool
) -> Target:
    """Build the target cluster from a command's options."""
    cluster_name, file = (None if path is None else str(path) for path in (cluster, token_file))
    return Target(address=address, cluster=cluster_name, token_file=file, is_trusted=trust, is_insecure=insecure)
