"""`lexray up`, `lexray down` and `lexray manifests`: clusters that are made, removed and described."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lexray.cluster.consoles import say
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.errors import UserError

clusters_app = typer.Typer()


Description = Annotated[Path, typer.Argument(metavar="CLUSTER", help="Description of the cluster (JSON or YAML).")]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="infra/aws-ec2, infra/aws-eks, infra/ssh, or a copy of one beside it.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
VarFile = Annotated[Path | None, typer.Option(help="Values of variables; terraform.tfvars in DIR is read anyway.")]


@clusters_app.command()
def manifests(
    file: Description,
    output: Annotated[Path | None, typer.Option(help="Folder to write, for kubectl apply -k; else stdout.")] = None,
    as_json: Json = False,
) -> None:
    """Render the Kubernetes manifests of a described cluster: its namespace, policies, RayCluster; with --output a job.

    Example: lexray manifests infra/kubernetes/example-cluster.yaml --output build/cluster
    """
    from importlib.metadata import version

    from lexray.cluster.manifests.manifests import applied, render, to_yaml, write
    from lexray.cluster.provisioned.description import ClusterDescription
    from lexray.storage.config_file import read_config_file

    cluster = read_config_file(str(file), ClusterDescription)
    try:
        files = render(cluster, ray_version=version("ray"))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    for pool in cluster.pools:
        if pool.gpus and pool.min_nodes:
            note = f"pool {pool.name}: {pool.min_nodes} node(s) with {pool.gpus} GPU(s) run, and cost, without any work"
            say(messages, note)
    if output is not None:
        written = write(files, output)
        say(messages, f"{len(written)} files in {output}; kubectl apply -k {output}")
    elif not as_json:
        sys.stdout.write(to_yaml(applied(files)))
    if as_json:
        print_json({"apiVersion": "v1", "kind": "List", "items": applied(files)})


@clusters_app.command()
def up(
    folder: Folder,
    yes: Yes = False,
    var_file: VarFile = None,
    skip_checks: Annotated[
        bool,
        typer.Option(
            "--skip-checks", help="Make it though AWS would launch no node now, as before a quota is granted."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a cluster and describe it: from Terraform files, after showing its cost and asking, or on hosts by ssh.

    Example: lexray up infra/aws-ec2
    """
    if _is_host_list(folder, var_file):
        from lexray.cluster.lifecycle import ssh_cluster

        raise typer.Exit(ssh_cluster.run_up(folder, messages, as_json))
    from lexray.cluster.lifecycle.terraform import Terraform
    from lexray.cluster.lifecycle.up import run_up

    terraform = Terraform(folder=folder, var_file=var_file)
    raise typer.Exit(run_up(terraform, _asked(yes), messages, as_json, skip_checks=skip_checks))


@clusters_app.command()
def down(
    folder: Folder,
    force: Annotated[
        bool, typer.Option("--force", help="Though jobs run, or nobody can tell; they save first.")
    ] = False,
    yes: Yes = False,
    var_file: VarFile = None,
    as_json: Json = False,
) -> None:
    """Remove a cluster and list what is still billed; buckets with data are kept. Refused while a job runs.

    Example: lexray down infra/aws-ec2
    """
    if _is_host_list(folder, var_file):
        from lexray.cluster.lifecycle import ssh_cluster

        raise typer.Exit(ssh_cluster.run_down(folder, force, messages, as_json))
    from lexray.cluster.lifecycle.down import run_down
    from lexray.cluster.lifecycle.terraform import Terraform

    raise typer.Exit(run_down(Terraform(folder=folder, var_file=var_file), _asked(yes), force, messages, as_json))


def _is_host_list(folder: Path, var_file: Path | None) -> bool:
    from lexray.cluster.lifecycle.ssh_hosts import HOSTS_FILE

    if not (folder / HOSTS_FILE).exists():
        return False
    if var_file is not None:
        raise UserError(f"--var-file: for Terraform's variables; {folder} is a list of hosts, edit its {HOSTS_FILE}")
    return True


def _asked(yes: bool) -> Callable[[str], bool] | None:
    """Return the function that requests the user's consent; None if no terminal is there."""
    if yes:
        return lambda _: True
    return (lambda question: typer.confirm(question, err=True)) if sys.stdin.isatty() else None
