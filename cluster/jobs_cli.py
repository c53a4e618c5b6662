"""Commands for sweeps on a cluster: submit, follow, stop, resume, list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lexray.cluster.consoles import TextConsole
from lexray.cluster.provisioned.connection import Target

jobs_app = typer.Typer()
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
Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 1 if it fails.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for its end and show what it says.")]


def target_of(
    address: str | None, cluster: Path | None, token_file: Path | None, *, trust: bool, insecure: bool
) -> Target:
    """How the options of a command name a cluster."""
    cluster_name, file = (None if path is None else str(path) for path in (cluster, token_file))
    return Target(address=address, cluster=cluster_name, token_file=file, is_trusted=trust, is_insecure=insecure)


@jobs_app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML); its output is a url that the cluster can write.")],
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    wait: Wait = False,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Send a sweep to a cluster, which runs it whether you stay or not. Send it again to continue.

    Example: lexray submit sweep.yaml --cluster cluster.json -f
    """
    from lexray.cluster.jobs.submit_command import SubmitOptions, run_submit

    options = SubmitOptions(wait=wait or follow, follow=follow)
    raise typer.Exit(
        run_submit(
            str(file),
            target_of(address, cluster, token_file, trust=trust, insecure=insecure),
            options,
            messages,
            as_json,
        )
    )


@jobs_app.command()
def resume(
    url: SweepUrl,
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    wait: Wait = False,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Send a sweep to a cluster again, from its folder alone; what is finished is not trained again.

    Example: lexray resume s3://bucket/runs/widths --cluster cluster.json
    """
    from lexray.cluster.jobs.submit_command import SubmitOptions, run_resume

    options = SubmitOptions(wait=wait or follow, follow=follow)
    raise typer.Exit(
        run_resume(
            url, target_of(address, cluster, token_file, trust=trust, insecure=insecure), options, messages, as_json
        )
    )


@jobs_app.command()
def status(
    sweep: SweepOrJob,
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Say how a sweep stands, from its folder: trials, steps, speed, what it waits for. The cluster may be gone.

    Example: lexray status s3://bucket/runs/widths
    """
    from lexray.cluster.follow.status import run_status

    run_status(sweep, target_of(address, cluster, token_file, trust=trust, insecure=insecure), messages, as_json)


@jobs_app.command()
def logs(
    sweep: SweepOrJob,
    trial: Annotated[str | None, typer.Argument(help="Name or id of one trial: what it logged.")] = None,
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the sweep ends.")] = False,
    as_json: Json = False,
) -> None:
    """Print what a sweep's driver said, or what a trial logged. The cluster may be gone.

    Example: lexray logs s3://bucket/runs/widths -f
    """
    from lexray.cluster.follow.logs import run_logs

    run_logs(
        sweep, trial, follow, target_of(address, cluster, token_file, trust=trust, insecure=insecure), messages, as_json
    )


@jobs_app.command()
def stop(
    sweep: SweepOrJob,
    force: Annotated[bool, typer.Option("--force", help="Do not wait: end its job now.")] = False,
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """Have a running sweep save its state and end; with a cluster, see that its job ends.

    Example: lexray stop s3://bucket/runs/widths
    """
    from lexray.cluster.follow.stop import run_stop

    raise typer.Exit(
        run_stop(
            sweep, force, target_of(address, cluster, token_file, trust=trust, insecure=insecure), messages, as_json
        )
    )


@jobs_app.command("list")
def list_(
    prefix: Annotated[str | None, typer.Argument(metavar="URL", help="Folder with sweeps in or below it.")] = None,
    address: Address = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    as_json: Json = False,
) -> None:
    """List the sweeps below a folder, or those that a cluster was given.

    Example: lexray list s3://bucket/runs
    """
    from lexray.cluster.follow.listing import run_list

    run_list(prefix, target_of(address, cluster, token_file, trust=trust, insecure=insecure), messages, as_json)
