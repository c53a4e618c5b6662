"""What `lexray submit` and `lexray resume` do."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from lexray.cluster.commands import FAILED, OK, print_json
from lexray.cluster.jobs.job_client import SUCCEEDED, Job, JobClient
from lexray.cluster.jobs.submit import Submission, scratch_warning, submit, sweep_of
from lexray.cluster.jobs.watch import follow_job
from lexray.cluster.provisioned.connection import Connection, Target, connect
from lexray.cluster.words import resume_command
from lexray.storage.errors import UserError
from lexray.storage.store import Store, reachable

if TYPE_CHECKING:
    from lexray.tuning.file.sweep_file import SweepFile
    from lexray.tuning.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SubmitOptions:
    """How a sweep is sent."""

    wait: bool
    """For the end of the job."""
    follow: bool
    """Show what it says meanwhile."""


def run_submit(file: str, target: Target, options: SubmitOptions, messages: Console, as_json: bool) -> int:
    """`lexray submit`: plan and job id on stdout. Exit code 1 when the job that was waited for failed."""
    from lexray.storage.config_file import read_config_file, read_text
    from lexray.tuning.file.sweep_file import SweepFile

    sweep = read_config_file(file, SweepFile)
    return _send(sweep, read_text(file), target, options, messages, as_json)


def run_resume(url: str, target: Target, options: SubmitOptions, messages: Console, as_json: bool) -> int:
    """`lexray resume`: the same with the sweep file that lies in the sweep's folder."""
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
    return _send(sweep, text, target, options, messages, as_json)


def _send(sweep: SweepFile, text: str, target: Target, options: SubmitOptions, messages: Console, as_json: bool) -> int:
    with connect(target) as connection:
        if warning := scratch_warning(Store.at(sweep.output).url, connection.description):
            _say(messages, f"warning: {warning}")
        sent = submit(connection, sweep, text, on_plan=_plan_shown(as_json))
        _tell(sent, messages)
        job = None
        if options.wait and sent.job:
            job = _awaited(connection, sent, target, options, messages)
    if as_json:
        print_json(_document(sent, job))
    elif sent.job:
        print(sent.job)
    return OK if job is None or job.status == SUCCEEDED else FAILED


def _plan_shown(as_json: bool) -> Any:
    def show(plan: Plan) -> None:
        from lexray.cluster.plan_commands import print_plan

        if not as_json:
            print_plan(plan)

    return show


def _tell(sent: Submission, messages: Console) -> None:
    if sent.unplanned:
        _say(messages, f"not planned here, the job plans before it starts: {sent.unplanned}")
    if not sent.job:
        _say(messages, f"every trial is finished, nothing to send: {sent.url}/report.html")
    elif not sent.is_new:
        _say(messages, f"{sent.job} runs already; follow it by `lexray logs {sent.url} -f`")
    else:
        _say(messages, f"sent {sent.bytes / 1e3:,.0f} kB; follow it by `lexray status {sent.url}`, or logs -f, stop")


def _awaited(
    connection: Connection, sent: Submission, target: Target, options: SubmitOptions, messages: Console
) -> Job:
    """The job once it has ended."""

    def emit(text: str) -> None:
        if options.follow:
            sys.stderr.write(text)
            sys.stderr.flush()

    how = resume_command(sent.url, target.options)
    job = follow_job(JobClient(connection.dashboard), sent.job, emit, how_to_resume=how)
    _say(messages, f"{job.id}: {job.status.lower()}" + (f", {job.message}" if job.status != SUCCEEDED else ""))
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


def _say(messages: Console, line: str) -> None:
    messages.print(line, markup=False, highlight=False, soft_wrap=True)
