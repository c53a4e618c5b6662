"""`lexray bench`: lexray on problems with known answers."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lexray.cluster.commands.synthsaebench import synthsaebench
from lexray.cluster.consoles import say, wide_console
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.store import Store

bench_app = typer.Typer(no_args_is_help=True, help="Measure lexray on problems with known answers.")
bench_app.command("synthsaebench")(synthsaebench)

MIN_TABLE_WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


@bench_app.command("ground-truth")
def ground_truth(
    world: Annotated[list[str] | None, typer.Option(help="Only this world; may be given several times.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Dictionaries of each kind; 3, and 2 with --quick.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two worlds, few dictionaries, two seeds.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep everything here, and continue from there.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train; 0 is one for each core, at most 8.")] = 0,
    tune: Annotated[
        Path | None, typer.Option(help="Choose learning rate and AuxK of every family, and write them here instead.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train dictionaries on rows whose features are known, and say how much of them each found.

    Example: lexray bench ground-truth --world tree-0 --world tree-0.3
    """
    from lexray.tuning.ground_truth.settings import tuned_text
    from lexray.tuning.ground_truth.study import StudyOptions, run_study
    from lexray.tuning.ground_truth.table import study_document, study_table
    from lexray.tuning.ground_truth.tuning import tune as run_grid

    options = StudyOptions(worlds=tuple(world or ()), seeds=seeds, quick=quick, workers=workers)
    logging.getLogger("lexray").setLevel(logging.WARNING)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total} trained"))
    with ExitStack() as stack:
        folder = Store.at(str(output) if output else stack.enter_context(TemporaryDirectory(prefix="lexray-bench-")))
        folder.check_writable("output")
        progress = stack.enter_context(Progress(*columns, TimeRemainingColumn(), console=messages, transient=True))
        task = progress.add_task("ground truth", total=None)

        def on_progress(name: str, done: int, total: int) -> None:
            progress.update(task, description=escape(name), completed=done, total=total)
            if not messages.is_terminal:
                say(messages, f"{done}/{total} {name}")

        if tune is not None:
            tune.write_text(tuned_text(run_grid(options.worlds, folder, options.num_workers, on_progress)) + "\n")
            return
        results = run_study(options, folder, on_progress)
    if as_json:
        print_json(study_document(results, options))
        return
    wide_console(MIN_TABLE_WIDTH).print(study_table(results))
