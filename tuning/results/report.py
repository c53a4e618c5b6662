"""The report of a sweep: one HTML file that needs nothing but itself, and `build_results` that writes all of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import jinja2
import pandas as pd

from lexray.storage.anonymous import without_home
from lexray.storage.config_file import MAX_BYTES, FileModel, checked_content, mapping_of
from lexray.storage.documents import read_bounded
from lexray.storage.errors import UserError
from lexray.storage.polling import read_many
from lexray.storage.store import Store
from lexray.storage.visible_text import visible
from lexray.training.measures.held_out import read_measures
from lexray.tuning.endings.budget import Usage, read_usage
from lexray.tuning.file.resources import PricesBlock
from lexray.tuning.file.search import SearchBlock
from lexray.tuning.planning.outcome import PLAN_FILE, Outcome, outcomes, read_plan
from lexray.tuning.results.columns import MISSING
from lexray.tuning.results.costs import Cost, costs
from lexray.tuning.results.curves import short_number
from lexray.tuning.results.frontier import FRONTIER_FILE, frontier_table, write_frontier
from lexray.tuning.results.measured import Document
from lexray.tuning.results.plot import frontier_figure, frontier_vectors
from lexray.tuning.results.provenance import DATASET_FILE, read_dataset
from lexray.tuning.results.report_sections import sections
from lexray.tuning.results.report_trials import DEFAULTS, Choices, Metrics, ReportTrials
from lexray.tuning.results.stability import STABILITY_FILE, read_stability, write_stability
from lexray.tuning.results.ties import FvuErrors
from lexray.tuning.sweep_folder import (
    DONE,
    FAILED,
    PAUSED,
    PENDING,
    RUNNING,
    STOPPED,
    TARGET_MISSED,
    SweepFolder,
    TrialRecord,
)

REPORT_FILE, FIGURE_FILE, VECTORS_FILE, SWEEP_FILE = "report.html", "frontier.png", "frontier.svg", "sweep.yaml"

Block = TypeVar("Block", bound=FileModel)

_FRONTIER_FILES = (FRONTIER_FILE, "frontier.csv", FIGURE_FILE, VECTORS_FILE)
_STATUS_ORDER = (DONE, TARGET_MISSED, STOPPED, *PAUSED, FAILED, RUNNING, PENDING)


def build_results(folder: SweepFolder, trials: list[str], choices: Choices = DEFAULTS) -> pd.DataFrame:
    """Read what lies in the folder, write `frontier.*`, `stability.json` and `report.html`; the frontier's table.

    A trial of `trials` without a record yet is a pending row.
    """
    stores = [folder.trial_store(trial) for trial in trials]
    found = read_many(folder.read_trial, trials)
    metrics = dict(zip(trials, read_many(folder.read_metrics, trials), strict=True))
    documents = dict(zip(trials, read_many(read_measures, stores), strict=True))
    measures = {trial: document for trial, document in documents.items() if document is not None}
    spent = dict(zip(trials, read_many(read_usage, stores), strict=True))
    pairs = zip(trials, found, strict=True)
    records = [record or TrialRecord(trial=trial, name=trial, config={}, status=PENDING) for trial, record in pairs]
    write_stability(folder, records)
    table = frontier_table(records, measures, read_stability(folder.store))
    write_frontier(folder.store, table)
    folder.store.write(FIGURE_FILE, frontier_figure(table, axes=choices.axes))
    folder.store.write(VECTORS_FILE, frontier_vectors(table, choices.axes))
    write_report(
        folder.store,
        records,
        metrics,
        _sweep_yaml(folder.store),
        measures=measures,
        spent={trial: hours for trial, hours in spent.items() if hours != Usage()},
        choices=choices,
    )
    return table


def write_report(
    store: Store,
    records: list[TrialRecord],
    metrics: Metrics,
    sweep_yaml: str,
    *,
    title: str | None = None,
    measures: Mapping[str, Document] = MappingProxyType({}),
    spent: Mapping[str, Usage] = MappingProxyType({}),
    choices: Choices = DEFAULTS,
) -> None:
    """Write `report.html`.

    `title` is by default the `name` in the sweep file, else the name of the folder; `measures` holds `measures.json` by
    trial, where it was measured; `spent` what a trial's workers took, where that is known.
    """
    content = _parsed(sweep_yaml)
    stability = read_stability(store)
    trials = ReportTrials(frontier_table(records, measures, stability), records, metrics, measures, choices)
    page = _template().render(
        title=title or str(content.get("name") or _place(store).rstrip("/").rsplit("/", 1)[-1]),
        place=_place(store),
        summary=[*_summary(records, metrics), *_chosen(content)],
        sweep_yaml=sweep_yaml,
        **trials.shown(_place(store)),
        **_costs(records, spent, content.get("prices")),
        **_documents(store, trials, stability, [SWEEP_FILE] if sweep_yaml else []),
    )
    store.write(REPORT_FILE, without_home(page).encode())


def _documents(
    store: Store, trials: ReportTrials, stability: dict[str, Any] | None, first_files: list[str]
) -> dict[str, Any]:
    """Sections from the plan, the stability of seeds and the dataset's provenance, if the folder has them."""
    found = {PLAN_FILE: read_plan(store), STABILITY_FILE: stability, DATASET_FILE: read_dataset(store)}
    present = [name for name, document in found.items() if document is not None]
    by, errors = trials.choices.by, FvuErrors(trials.measures.get)
    return {
        "estimates": [_outcome(outcome) for outcome in outcomes(found[PLAN_FILE], trials.records, trials.metrics)],
        "sections": sections(trials.table, trials.records, stability, found[DATASET_FILE], by, errors),
        "files": [*first_files, *_FRONTIER_FILES, *present],
    }


def _costs(records: Sequence[TrialRecord], spent: Mapping[str, Usage], block: Any) -> dict[str, Any]:
    """The table of costs, in money where the sweep file's `block` has prices."""
    prices = _block(PricesBlock, block)
    return {"costs": [_cost(cost, prices) for cost in costs(records, spent, prices)], "prices": prices}


@cache
def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    return environment.get_template("report.html.j2")


def _shown(value: Any) -> Any:
    """Foreign text without control characters; markup of our own, and numbers, as they are."""
    return visible(value) if type(value) is str else value


def _sweep_yaml(store: Store) -> str:
    try:
        return read_bounded(store, SWEEP_FILE, MAX_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return ""


def _place(store: Store) -> str:
    return store.local_path if store.local_path is not None else store.url


def _parsed(sweep_yaml: str) -> dict[str, Any]:
    """Parse the sweep file; empty if it is no longer valid."""
    try:
        return mapping_of(sweep_yaml, SWEEP_FILE)
    except UserError:
        return {}


def _summary(records: list[TrialRecord], metrics: Metrics) -> list[tuple[str, str]]:
    statuses = Counter(record.status for record in records)
    rows = sum(max((r["rows"] for r in metrics.get(record.trial, ()) if "rows" in r), default=0) for record in records)
    timed = [record.timing for record in records if record.timing.get("total_s")]
    total_s = sum(timing["total_s"] for timing in timed)
    train_s = sum(timing.get("train_s", math.nan) for timing in timed)
    summary = [("trials", str(len(records)))]
    summary += [(status, str(statuses[status])) for status in _STATUS_ORDER if statuses[status]]
    summary += [("rows, all trials", short_number(rows))]
    if timed:
        summary += [("wall time, all trials", duration(total_s))]
        summary += [("of it in training steps", f"{train_s / total_s:.0%}")] if math.isfinite(train_s) else []
    return summary


def _chosen(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe how the points of the axes were chosen."""
    search = _block(SearchBlock, content.get("search") or {})
    return [("points", str(search))] if "axes" in content and search is not None else []


def _block(model: type[Block], block: Any) -> Block | None:
    """A block of the sweep file; None where there is none, or someone broke it since."""
    try:
        return checked_content(SWEEP_FILE, block, model) if isinstance(block, dict) else None
    except UserError:
        return None


def _outcome(found: Outcome) -> tuple[str, str, str, str]:
    """Format an estimate for the template: name, estimated, actual, their ratio."""
    text = duration if found.unit == "seconds" else lambda size: f"{size / 2**20:,.0f} MiB"
    ratio = f"{found.ratio:.2f}" if math.isfinite(found.ratio) else MISSING
    return found.name, text(found.predicted), text(found.real), ratio


def _cost(cost: Cost, prices: PricesBlock | None) -> tuple[str, list[str]]:
    """Format a cost for the template."""
    share = cost.train_s / cost.wall_s if cost.wall_s else math.nan
    cells = [str(cost.trials), duration(cost.wall_s), f"{share:.0%}" if math.isfinite(share) else MISSING]
    cells += [f"{cost.cpu_hours:.2f}", f"{cost.gpu_hours:.2f}"]
    if prices is not None and cost.money is not None:
        cells.append(f"{cost.money:,.2f} {prices.currency}")
    return cost.name, cells


def duration(seconds: float) -> str:
    """`4000` as `1 h 06 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
