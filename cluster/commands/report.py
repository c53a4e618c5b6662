"""`lexray report` and `lexray compare`: the results of a sweep from its folder alone, and of two side by side."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from lexray.cluster.consoles import TextConsole, plain_table
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_frontier, print_json

if TYPE_CHECKING:
    import pandas as pd

    from lexray.tuning.results.ties import FvuErrors

report_app = typer.Typer()


@report_app.command()
def report(
    url: Annotated[str, typer.Argument(help="Folder of a sweep: path or url.")],
    x: Annotated[str, typer.Option(help="Column of the table that the picture's x axis shows.")] = "l0",
    y: Annotated[str, typer.Option(help="Column of its y axis: fvu, bits, babel, ...")] = "fvu",
    recommend_by: Annotated[
        str,
        typer.Option(help="What dictionaries are recommended by: fvu (least), bits (fewest) or stability (highest)."),
    ] = "fvu",
    as_json: Json = False,
) -> None:
    """Write frontier.parquet, frontier.png and report.html of a sweep anew from what its trials wrote.

    Example: lexray report runs/quickstart/sweep --x l0 --y bits --recommend-by stability
    """
    from lexray.training.measures.held_out import read_measures
    from lexray.tuning.results.columns import frontier_axes
    from lexray.tuning.results.recommend import criterion, recommend
    from lexray.tuning.results.report import build_results
    from lexray.tuning.results.report_trials import Choices
    from lexray.tuning.results.ties import FvuErrors
    from lexray.tuning.sweep_folder import SweepFolder

    choices = Choices(frontier_axes(x, y), criterion(recommend_by))
    folder = SweepFolder.existing(url)
    table = build_results(folder, folder.store.list_folders("trials"), choices)
    errors = FvuErrors(lambda trial: read_measures(folder.trial_store(trial)))
    print_frontier(table, folder.store, messages, as_json, recommend(table, choices.by, errors))


@report_app.command()
def compare(
    first: Annotated[str, typer.Argument(metavar="URL1", help="Folder of a sweep: path or url.")],
    second: Annotated[str, typer.Argument(metavar="URL2", help="Folder of another.")],
    as_json: Json = False,
) -> None:
    """Show two sweeps side by side: each dictionary's L0 and FVU, and which frontier beats which.

    Example: lexray compare runs/monday/sweep runs/tuesday/sweep
    """
    from lexray.tuning.results.compare import beaten_shares, differences_of_data, matched
    from lexray.tuning.sweep_folder import SweepFolder

    folders = [SweepFolder.existing(url) for url in (first, second)]
    (one, errors), (two, other_errors) = (_table(folder) for folder in folders)
    trials, shares = matched(one, two, (errors, other_errors)), beaten_shares(one, two)
    differences = differences_of_data(*folders)
    if as_json:
        trials_json, shares_json = (json.loads(table.to_json(orient="records")) for table in (trials, shares))
        print_json({
            "first": folders[0].store.url,
            "second": folders[1].store.url,
            "differences_of_data": differences,
            "trials": trials_json,
            "frontiers": shares_json,
        })  # fmt: skip
        return
    for difference in differences:
        messages.print(Text.assemble(("not the same rows", "yellow"), f"  {difference}"), soft_wrap=True)
    TextConsole().print(_trials_table(trials))
    for row in shares.itertuples():
        print(
            f"width {row.width}, {row.sites}: the second beats {row.beaten_1:.0%} of the first's {row.points_1} "
            f"frontier points, the first {row.beaten_2:.0%} of the second's {row.points_2}"
        )
    if shares.empty:
        print("no width and sites have finished dictionaries in both sweeps")


def _table(folder: Any) -> tuple[pd.DataFrame, FvuErrors]:
    """Return the frontier of what lies in the folder now, which is not written to, and its standard errors."""
    from lexray.storage.polling import read_many
    from lexray.training.measures.held_out import read_measures
    from lexray.tuning.results.frontier import frontier_table
    from lexray.tuning.results.ties import FvuErrors

    trials = folder.store.list_folders("trials")
    found = read_many(read_measures, [folder.trial_store(trial) for trial in trials])
    measures = {trial: document for trial, document in zip(trials, found, strict=True) if document is not None}
    records = [record for record in read_many(folder.read_trial, trials) if record is not None]
    return frontier_table(records, measures), FvuErrors(measures.get)


def _trials_table(trials: pd.DataFrame) -> Table:
    from lexray.tuning.results.columns import format_cell

    rows = []
    for row in trials.to_dict("records"):
        cells = [format_cell(name, row[f"{name}_{which}"]) for which in (1, 2) for name in ("l0", "fvu")]
        rows.append((row["name"], *cells, _change(row["fvu_change"], row["change_error"])))
    return plain_table(("name", "L0", "FVU", "L0", "FVU", "change of FVU"), rows)


def _change(change: float, error: float) -> str:
    """Format a relative change with its standard error; two of these or less are a tie."""
    from lexray.training.measures.documents import TIE_ERRORS

    if math.isnan(change):
        return ""
    if math.isnan(error):
        return f"{change:+.1%}"
    return f"{change:+.1%} ±{error:.1%}" + (", tied" if abs(change) <= TIE_ERRORS * error else "")
