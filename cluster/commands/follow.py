"""`lexray status`, `logs`, `stop` and `list`: sweeps that run somewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from lexray.cluster.options import Json, SweepOrJob, messages, names_cluster
from lexray.cluster.provisioned.connection import Target

follow_app = typer.Typer()


@follow_app.command()
@names_cluster
def status(
    sweep: SweepOrJob,
    target: Target,
    as_json: Json = False,
) -> None:
    """Say how a sweep stands, from its folder: trials, steps, speed, what it waits for. The cluster may be gone.

    Example: lexray status s3://bucket/runs/widths
    """
    from lexray.cluster.follow.status import run_status

    run_status(sweep, target, as_json)


@follow_app.command()
@names_cluster
def logs(
    sweep: SweepOrJob,
    trial: Annotated[str | None, typer.Argument(help="Name or id of one trial: what it logged.")] = None,
    *,
    target: Target,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sweep ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a sweep's driver said, or what a trial logged. The cluster may be gone.

    Example: lexray logs s3://bucket/runs/widths -f
    """
    from lexray.cluster.follow.logs import run_logs

    run_logs(sweep, trial, follow, target, as_json)


@follow_app.command()
@names_cluster
def stop(
    sweep: SweepOrJob,
    force: Annotated[bool, typer.Option("--force", help="Do not wait: end its job now.")] = False,
    *,
    target: Target,
    as_json: Json = False,
) -> None:
    """Have a running sweep save its state and end; with a cluster, see that its job ends.

    Example: lexray stop s3://bucket/runs/widths
    """
    from lexray.cluster.follow.stop import run_stop

    raise typer.Exit(run_stop(sweep, force, target, messages, as_json))


@follow_app.command("list")
@names_cluster
def list_(
    prefix: Annotated[str | None, typer.Argument(metavar="URL", help="Folder with sweeps in or below it.")] = None,
    *,
    target: Target,
    as_json: Json = False,
) -> None:
    """List the sweeps below a folder, or those that a cluster was given.

    Example: lexray list s3://bucket/runs
    """
    from lexray.cluster.follow.listing import run_list

    run_list(prefix, target, as_json)
