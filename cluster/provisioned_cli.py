"""Commands for a cluster that `infra/` made, or that somebody described in the same form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

provisioned_app = typer.Typer()
messages = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Description = Annotated[Path, typer.Argument(metavar="CLUSTER", help="Description of the cluster (JSON or YAML).")]


@provisioned_app.command()
def manifests(
    file: Description,
    output: Annotated[Path | None, typer.Option(help="Folder to write, for kubectl apply -k; else stdout.")] = None,
    as_json: Json = False,
) -> None:
    """Render the Kubernetes manifests of a described cluster: its namespace, policies, RayCluster; with --output a job.

    Example: lexray manifests infra/kubernetes/example-cluster.yaml --output build/cluster
    """
    from cluster.manifest_commands import run_manifests

    run_manifests(str(file), output, messages, as_json)
