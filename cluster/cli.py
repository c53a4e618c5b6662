"""The `lexray` command. Progress and messages go to stderr, results to stdout."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.logging import RichHandler
from rich.text import Text

from lexray.cluster.consoles import TextConsole, plain_streams
from lexray.cluster.data_cli import data_app
from lexray.cluster.dictionary_cli import bench_app, dictionary_app
from lexray.cluster.doctor_cli import doctor_app
from lexray.cluster.home import ensure_home
from lexray.cluster.jobs_cli import jobs_app
from lexray.cluster.provisioned.errors import ClusterLostError, RefusedError
from lexray.cluster.provisioned_cli import provisioned_app
from lexray.cluster.wandb_commands import wandb_app
from lexray.storage.errors import CorruptDataError, UserError, one_line
from lexray.storage.objects.first_answer import NoAnswerError, answers_within
from lexray.storage.objects.retries import StoreUnavailableError, is_of_botocore

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130
FIRST_ANSWER_S = 5.0
"""For how long a store that never answered a command is asked."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train sweeps of sparse dictionaries on stored activations.\n\n"
    "Example: lexray sweep examples/quickstart/sweep.yaml",
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(wandb_app, name="wandb")
app.add_typer(jobs_app)
app.add_typer(provisioned_app)  # no name: its commands stand beside the others
app.add_typer(doctor_app)
app.add_typer(dictionary_app)

messages = TextConsole(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@app.command()
def harvest(
    file: Annotated[Path, typer.Argument(help="Harvest file (YAML).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to work on; without it this machine.")] = None,
    as_json: Json = False,
) -> None:
    """Turn a model and a text, or images, into a dataset of activations. Run it again to continue.

    Example: lexray harvest examples/quickstart/harvest.yaml
    """
    from lexray.cluster.commands import run_harvest

    run_harvest(str(file), address, messages, as_json)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to join; without it one is started here.")] = None,
    job: Annotated[str, typer.Option(hidden=True, help="Id of the job that this command is.")] = "",
    cluster_name: Annotated[str, typer.Option(hidden=True, help="What people call the cluster.")] = "",
    pools: Annotated[str, typer.Option(hidden=True, help="What its autoscaler may start, as JSON.")] = "",
    as_json: Json = False,
) -> None:
    """Train the dictionaries of a sweep file and draw their frontier. Run it again to continue.

    Example: lexray sweep examples/quickstart/sweep.yaml
    """
    from lexray.cluster.provisioned.pools import pools_of
    from lexray.cluster.sweep_commands import Where, run_sweep_file

    where = Where(address=address, cluster=cluster_name, job=job, pools=pools_of(pools))
    raise typer.Exit(run_sweep_file(str(file), where, messages, as_json))


@app.command()
def plan(
    file: Annotated[Path, typer.Argument(help="Sweep file (YAML).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to plan for; without it this machine.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Time some steps of each kind of trial here.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a sweep would train, need of memory, read, take and cost, before anything starts.

    Example: lexray plan examples/quickstart/sweep.yaml --measure
    """
    from lexray.cluster.plan_commands import run_plan

    run_plan(str(file), address, measure, messages, as_json)


@app.command()
def report(
    url: Annotated[str, typer.Argument(help="Folder of a sweep: path or url.")],
    as_json: Json = False,
) -> None:
    """Write frontier.parquet, frontier.png and report.html of a sweep anew from what its trials wrote.

    Example: lexray report runs/quickstart/sweep
    """
    from lexray.cluster.commands import write_results

    write_results(url, messages, as_json)


@app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="URL1", help="Folder of a sweep: path or url.")],
    second: Annotated[str, typer.Argument(metavar="URL2", help="Folder of another.")],
    as_json: Json = False,
) -> None:
    """Show two sweeps side by side: each dictionary's L0 and FVU, and which frontier beats which.

    Example: lexray compare runs/monday/sweep runs/tuesday/sweep
    """
    from lexray.cluster.compare_commands import compare_sweeps

    compare_sweeps(first, second, messages, as_json)


@app.command()
def architectures(
    name: Annotated[str | None, typer.Argument(help="Show one of them whole.")] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of documentation.")] = False,
) -> None:
    """List what can be trained: papers, equations, options.

    Example: lexray architectures jumprelu
    """
    from lexray.cluster.architecture_commands import list_architectures

    list_architectures(name, as_json, markdown)


@app.command()
def schema() -> None:
    """Print the JSON schema of a sweep file, for editors.

    Example: lexray schema > sweep.schema.json
    """
    from lexray.cluster.architecture_commands import print_schema

    print_schema()


def main() -> None:
    """Entry point: turns errors into one line and an exit code, and lets nothing foreign act on the terminal."""
    with plain_streams():
        _main()


def _main() -> None:
    logging.getLogger("lexray").setLevel(logging.INFO)
    logging.getLogger("lexray").addHandler(RichHandler(console=messages, show_time=False, show_path=False))
    try:
        if note := ensure_home():  # before any library looks for it
            logging.getLogger("lexray").warning("%s", note)
        with answers_within(FIRST_ANSWER_S):
            code = app(standalone_mode=False) or 0
        if code != INTERRUPTED:  # what the command line makes of an interrupt, without a word
            sys.exit(code)
        raise KeyboardInterrupt
    except (UserError, NoAnswerError) as error:
        _fail(str(error), WRONG_INPUT)
    except (CorruptDataError, ClusterLostError, RefusedError, StoreUnavailableError) as error:
        _fail(str(error), FAILED)
    except (typer.Abort, KeyboardInterrupt) as error:
        if isinstance(error.__cause__, EOFError):  # typer takes any for the end of what a user types
            raise error.__cause__ from None
        _fail("interrupted; run the same command again to continue", INTERRUPTED)
    except Exception as error:
        if is_of_botocore(error):
            _fail(one_line(error), WRONG_INPUT)
        if not hasattr(error, "show"):  # a wrong call of the command: the command line knows how to say it
            raise
        error.show()
        sys.exit(WRONG_INPUT)


def _fail(line: str, code: int) -> None:
    messages.print(Text.assemble(("error", "red"), f" {' '.join(line.split())}"), soft_wrap=True)
    sys.exit(code)
