"""`lexray doctor`: how it is called, and how what it finds is shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from storage.config_file import read_config_file
from storage.errors import UserError

if TYPE_CHECKING:
    from cluster.doctor.gather import Request

HEALTHY, UNHEALTHY = 0, 1
messages = Console(stderr=True)
doctor_app = typer.Typer()


@doctor_app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(metavar="[SWEEP_FILE]", help="Sweep file (YAML).")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to look at; without it this machine.")] = None,
    token_file: Annotated[Path | None, typer.Option(help="File with the cluster's token.")] = None,
    data: Annotated[str | None, typer.Option(help="Dataset to read a chunk of, instead of the file's.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder to write a key to, instead of the file's.")] = None,
    min_free_gib: Annotated[float, typer.Option(min=0, help="Free disk that Ray's folder needs on a node.")] = 10.0,
    min_gb_s: Annotated[float, typer.Option(min=0, help="All-reduce between nodes, at least, in GB/s.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")] = False,
) -> None:
    """Look at a cluster from inside before a sweep runs there: one line for each check, and what to do.

    Exit code 1 when a check failed.

    Example: lexray doctor examples/quickstart/sweep.yaml
    """
    use_token(token_file)
    request = request_of(file, data, output)
    from cluster.commands import print_json
    from cluster.doctor.run import diagnose
    from cluster.doctor.show import as_document, as_table, is_healthy
    from cluster.doctor.verdict import GIB, Limits

    limits = Limits(free_disk_bytes=round(min_free_gib * GIB), all_reduce_gb_s=min_gb_s)
    with messages.status("starting Ray here" if address is None else f"asking the nodes of {address}"):
        found = diagnose(request, address, limits)
    if as_json:
        print_json(as_document(found.checks, found.address, found.took_s))
    else:
        Console().print(as_table(found.checks))
    raise typer.Exit(HEALTHY if is_healthy(found.checks) else UNHEALTHY)


def use_token(file: Path | None) -> None:
    """Make Ray's clients in this process show the token of a file; before Ray is imported. Raises UserError."""
    if file is None:
        return
    if not file.is_file():
        raise UserError(f"--token-file {file}: no such file")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(file.absolute()))


def request_of(file: Path | None, data: str | None, output: str | None) -> Request:
    """What to look at: the sweep file's places, or those given instead. Raises UserError."""
    from cluster.doctor.gather import Request
    from storage.store import Store

    if file is None:
        urls = [None if url is None else Store.at(url).url for url in (data, output)]
        return Request(data_url=urls[0], output_url=urls[1])
    from tuning.file.sweep_file import SweepFile

    sweep = read_config_file(str(file), SweepFile)
    return Request(
        data_url=Store.at(data or sweep.data.url).url,
        output_url=Store.at(output or sweep.output).url,
        storage=sweep.storage.settings,
        cache_dir=sweep.cache.dir if sweep.cache is not None else None,
        cache_bytes=sweep.cache.bytes if sweep.cache is not None else 0,
        wandb_mode=sweep.wandb.mode,
    )
