"""The `lexray` command. Progress and messages go to stderr, results to stdout."""

from __future__ import annotations

import logging
import sys

import typer
from rich.logging import RichHandler
from rich.text import Text

from lexray.cluster.commands.architectures import architectures_app
from lexray.cluster.commands.clusters import clusters_app
from lexray.cluster.commands.data import data_app
from lexray.cluster.commands.doctor import doctor_app
from lexray.cluster.commands.exports import export_app
from lexray.cluster.commands.follow import follow_app
from lexray.cluster.commands.ground_truth import bench_app
from lexray.cluster.commands.harvest import harvest_app
from lexray.cluster.commands.measure import measure_app
from lexray.cluster.commands.plan import plan_app
from lexray.cluster.commands.report import report_app
from lexray.cluster.commands.submit import submit_app
from lexray.cluster.commands.sweep import sweep_app
from lexray.cluster.commands.wandb import wandb_app
from lexray.cluster.consoles import plain_streams
from lexray.cluster.home import ensure_home
from lexray.cluster.options import messages
from lexray.cluster.provisioned.errors import ClusterLostError, RefusedError
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
for commands in (
    harvest_app, sweep_app, plan_app, report_app, architectures_app,
    submit_app, follow_app, clusters_app, doctor_app,
    export_app, measure_app,
):  # fmt: skip
    app.add_typer(commands)  # without a name: they stand beside each other
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(wandb_app, name="wandb")


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
