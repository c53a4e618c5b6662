"""`lexray doctor`: how it is called, and how what it finds is shown."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.text import Text

from lexray.cluster.consoles import TextConsole
from lexray.cluster.options import Cluster, Insecure, Json, TokenFile, Trust, messages, target_of
from lexray.cluster.output import print_json
from lexray.cluster.provisioned.connection import Target
from lexray.storage.config_file import read_config_file, read_text
from lexray.storage.errors import UserError

if TYPE_CHECKING:
    from lexray.cluster.doctor.collect import Request
    from lexray.cluster.doctor.verdict import Check

HEALTHY, UNHEALTHY = 0, 1
doctor_app = typer.Typer()


@doctor_app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(metavar="[SWEEP_FILE]", help="Sweep file (YAML).")] = None,
    address: Annotated[
        str | None,
        typer.Option(help="http://HOST:8265 of a dashboard, or HOST:6379 of a Ray to join; else this machine."),
    ] = None,
    cluster: Cluster = None,
    token_file: TokenFile = None,
    trust: Trust = False,
    insecure: Insecure = False,
    data: Annotated[str | None, typer.Option(help="Dataset to read a chunk of, instead of the file's.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder to write a key to, instead of the file's.")] = None,
    region: Annotated[str | None, typer.Option(help="Where the nodes run, if nothing else tells.")] = None,
    min_free_gib: Annotated[float, typer.Option(min=0, help="Free disk that Ray's folder needs on a node.")] = 10.0,
    min_gb_s: Annotated[float, typer.Option(min=0, help="All-reduce between nodes, at least, in GB/s.")] = 0.0,
    is_job: Annotated[bool, typer.Option("--is-job", hidden=True, help="This command is a job.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a cluster from inside before a sweep runs there: one line for each check, and what to do.

    Exit code 1 when a check failed.

    Example: lexray doctor sweep.yaml --cluster cluster.json
    """
    asked = DoctorOptions(file, data, output, region, min_free_gib, min_gb_s)
    began = time.monotonic()
    if cluster is not None or (address or "").startswith(("http://", "https://")):
        target = target_of(address, cluster, token_file, trust=trust, insecure=insecure)
        where, checks = _by_job(asked, target)
    else:
        where, checks = _joined(asked, address, token_file, is_job=is_job)
    from lexray.cluster.doctor.verdict import as_document, as_table, is_healthy

    if as_json:
        print_json(as_document(checks, where, time.monotonic() - began))
    else:
        TextConsole().print(as_table(checks))
    raise typer.Exit(HEALTHY if is_healthy(checks) else UNHEALTHY)


class DoctorOptions(NamedTuple):
    """Options of the command, except those that select the cluster."""

    file: Path | None
    data: str | None
    output: str | None
    region: str | None
    min_free_gib: float
    min_gb_s: float


def _joined(
    asked: DoctorOptions, address: str | None, token_file: Path | None, *, is_job: bool
) -> tuple[str, list[Check]]:
    """Run the doctor on a Ray that this process joins or starts."""
    use_token(token_file)
    request = request_of(asked)
    from lexray.cluster.doctor.run import diagnose
    from lexray.cluster.doctor.verdict import GIB, Limits

    limits = Limits(free_disk_bytes=round(asked.min_free_gib * GIB), all_reduce_gb_s=asked.min_gb_s)
    with messages.status("starting Ray here" if address is None else f"asking the nodes of {address}"):
        return address or "this machine", diagnose(request, address, limits, is_job=is_job)


def _by_job(asked: DoctorOptions, target: Target) -> tuple[str, list[Check]]:
    """Run the doctor as a job on a cluster of which only the dashboard is reachable."""
    from lexray.cluster.doctor.remote import diagnose_by_job

    text = read_text(str(asked.file)) if asked.file is not None else None
    request = request_of(asked)  # refuses a wrong file here, not there
    given = {
        "--data": request.data_url,
        "--output": request.output_url,
        "--region": asked.region,
        "--min-free-gib": str(asked.min_free_gib),
        "--min-gb-s": str(asked.min_gb_s),
    }
    arguments = [word for option, value in given.items() if value is not None for word in (option, value)]
    with messages.status(Text(f"asking the nodes of {target.options}")):
        return diagnose_by_job(target, text, arguments)


def use_token(file: Path | None) -> None:
    """Make Ray's clients in this process send the token of a file; call before importing Ray. Raises UserError."""
    if file is None:
        return
    if not file.is_file():
        raise UserError(f"--token-file {file}: no such file")
    if os.environ.get("RAY_AUTH_TOKEN_PATH") == str(file) and "RAY_AUTH_MODE" in os.environ:
        return  # the environment has said both itself
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file.absolute()))


def request_of(asked: DoctorOptions) -> Request:
    """Build the request from the sweep file; `--data` and `--output` override its urls. Raises UserError."""
    from lexray.cluster.doctor.collect import Request
    from lexray.storage.store import Store

    if asked.file is None:
        data, output = (None if url is None else Store.at(url).url for url in (asked.data, asked.output))
        return Request(data_url=data, output_url=output, region=asked.region)
    from lexray.tuning.file.sweep_file import SweepFile

    sweep = read_config_file(str(asked.file), SweepFile)
    return Request(
        data_url=Store.at(asked.data or sweep.data.url).url,
        output_url=Store.at(asked.output or sweep.output).url,
        storage=sweep.storage,
        cache_dir=sweep.cache.dir if sweep.cache is not None else None,
        cache_bytes=sweep.cache.bytes if sweep.cache is not None else 0,
        wandb_mode=sweep.wandb.mode,
        region=asked.region,
    )
