"""What `lexray bench` does. Imports are late: `lexray --help` should not load torch."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lexray.cluster.commands import print_json
from lexray.cluster.consoles import TextConsole
from lexray.storage.store import Store

MIN_TABLE_WIDTH = 200
"""Columns of a table that is not printed to a terminal."""


def run_ground_truth(
    worlds: tuple[str, ...],
    seeds: int | None,
    quick: bool,
    workers: int,
    output: Path | None,
    messages: Console,
    as_json: bool,
) -> None:
    """`lexray bench ground-truth`: train on known worlds, print what was found."""
    from lexray.tuning.ground_truth.study import StudyOptions, run_study
    from lexray.tuning.ground_truth.table import study_document, study_table

    options = StudyOptions(worlds=worlds, seeds=seeds, quick=quick, workers=workers)
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
                messages.print(f"{done}/{total} {name}", markup=False, highlight=False, soft_wrap=True)

        results = run_study(options, folder, on_progress)
    if as_json:
        print_json({"seeds": options.num_seeds, "quick": quick, "results": study_document(results)})
        return
    out = TextConsole()
    out = out if out.is_terminal else TextConsole(width=MIN_TABLE_WIDTH)
    out.print(study_table(results))
