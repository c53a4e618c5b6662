"""`lexray manifests`: Kubernetes manifests of a described cluster."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from lexray.cluster.commands import print_json
from lexray.cluster.manifests.manifests import applied, render, to_yaml, write
from lexray.cluster.provisioned.description import ClusterDescription
from lexray.storage.config_file import read_config_file
from lexray.storage.errors import UserError


def run_manifests(file: str, output: Path | None, messages: Console, as_json: bool) -> None:
    """Write the folder, or print what applying it makes: YAML, or one `List` of Kubernetes as JSON."""
    cluster = read_config_file(file, ClusterDescription)
    try:
        files = render(cluster, ray_version=version("ray"))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    for pool in cluster.pools:
        if pool.gpus and pool.min_nodes:
            note = f"pool {pool.name}: {pool.min_nodes} node(s) with {pool.gpus} GPU(s) run, and cost, without any work"
            messages.print(note, markup=False, highlight=False, soft_wrap=True)
    if output is not None:
        written = write(files, output)
        messages.print(
            f"{len(written)} files in {output}; kubectl apply -k {output}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    elif not as_json:
        sys.stdout.write(to_yaml(applied(files)))
    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": applied(files)})
