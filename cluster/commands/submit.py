"""`lexray submit` and `lexray resume`: send a sweep to a cluster."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexray.cluster.commands.plan import print_plan
from lexray.cluster.consoles import say
from lexray.cluster.jobs.job_client import SUCCEEDED, Job, JobClient, follow_job
from lexray.cluster.jobs.submit import Submission, scratch_warning, submit, sweep_of
from lexray.cluster.options import Json, SweepUrl, messages, names_cluster
from lexray.cluster.output import FAILED, OK, print_json, resume_command
from lexray.cluster.provisioned.connection import Connection, Target, connect
from lexray.storage.errors import UserError
from lexray.storage.store import Store, reachable

if TYPE_CHECKING:
    from lexray.tuning.file.sweep_file import SweepFile
    from lexray.tuning.planning.plan import Plan


submit_app = typer.Typer()
Wait = Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 1 if it fails.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Wait for its end and show what it says.")]


@submit_app.command("submit")
@names_cluster
def submit_command(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML); its output is a url that the cluster can write.")],
    target: Target,
    wait: Wait = False,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Send a sweep to a cluster, which runs it whether you stay or not. Send it again to continue.

    Example: lexray submit sweep.yaml --cluster cluster.json -f
    """
    from lexray.storage.config_file import read_config_file, read_text
    from lexray.tuning.file.sweep_file import SweepFile

    sweep = read_config_file(str(file), SweepFile)
    _send(sweep, read_text(str(file)), target, wait, follow, as_json)


@submit_app.command()
@names_cluster
def resume(
    url: SweepUrl,
    target: Target,
    wait: Wait = False,
    follow: Follow = False,
    as_json: Json = False,
) -> None:
    """Send a sweep to a cluster again, from its folder alone; what is finished is not trained again.

    Example: lexray resume s3://bucket/runs/widths --cluster cluster.json
    """
    from lexray.tuning.sweep_folder import SweepFolder

    with reachable("sweep", url):
        folder = SweepFolder.existing(url)
        text = folder.store.read("sweep.yaml").decode()
    sweep = sweep_of(text, f"{folder.store.url}/sweep.yaml")
    output = Store.at(sweep.output).url
    if output != folder.store.url:
        raise UserError(
            f"{folder.store.url}/sweep.yaml: its output is {output}, another folder: this one was copied or moved; "
            "submit a file whose output is this folder"
        )
    _send(sweep, text, target, wait, follow, as_json)


def _send(sweep: SweepFile, text: str, target: Target, wait: bool, follow: bool, as_json: bool) -> None:
    """Submit; plan and job id go to stdout. Exit code 1 when the job that was waited for failed."""
    with connect(target) as connection:
        if warning := scratch_warning(Store.at(sweep.output).url, connection.description):
            say(messages, f"warning: {warning}")
        sent = submit(connection, sweep, text, on_plan=_plan_shown(as_json))
        _tell(sent)
        job = None
        if (wait or follow) and sent.job:
            job = _awaited(connection, sent, target, follow)
    if as_json:
        print_json(_document(sent, job))
    elif sent.job:
        print(sent.job)
    raise typer.Exit(OK if job is None or job.status == SUCCEEDED else FAILED)


def _plan_shown(as_json: bool) -> Any:
    def show(plan: Plan) -> None:
        if not as_json:
            print_plan(plan)

    return show


def _tell(sent: Submission) -> None:
    if sent.unplanned:
        say(messages, f"not planned here, the job plans before it starts: {sent.unplanned}")
    if not sent.job:
        say(messages, f"every trial is finished, nothing to send: {sent.url}/report.html")
    elif not sent.is_new:
        say(messages, f"{sent.job} runs already; follow it by `lexray logs {sent.url} -f`")
    else:
        say(messages, f"sent {sent.bytes / 1e3:,.0f} kB; follow it by `lexray status {sent.url}`, or logs -f, stop")


def _awaited(connection: Connection, sent: Submission, target: Target, follow: bool) -> Job:
    """Return the job once it has ended; `follow` shows what it says meanwhile."""

    def emit(text: str) -> None:
        if follow:
            sys.stderr.write(text)
            sys.stderr.flush()

    how = resume_command(sent.url, target.options)
    job = follow_job(JobClient(connection.dashboard), sent.job, emit, how_to_resume=how)
    say(messages, f"{job.id}: {job.status.lower()}" + (f", {job.message}" if job.status != SUCCEEDED else ""))
    return job


def _document(sent: Submission, job: Job | None) -> dict[str, Any]:
    return {
        "job": sent.job or None,
        "url": sent.url,
        "is_new": sent.is_new,
        "plan": None if sent.plan is None else sent.plan.to_dict(),
        "unplanned": sent.unplanned,
        "status": None if job is None else job.status,
    }
