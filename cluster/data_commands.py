"""What `lexray data` does; `cli` says how it is called. Imports are late: `lexray --help` should not load torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lexray.cluster.commands import FAILED, OK, dataset_summary, print_json, rows_progress
from lexray.cluster.consoles import TextConsole
from lexray.storage.store import Store

if TYPE_CHECKING:
    from lexray.storage.row_checks import SiteFindings
    from lexray.storage.verify import Findings

NORM_RATIO = 10.0
"""Rows of a norm above so many medians are left out of training unless a sweep says otherwise."""
MIN_TABLE_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


def inspect_dataset(url: str, messages: Console, as_json: bool) -> None:
    """`lexray data inspect`: sites, rows, shards and origin of a dataset."""
    from lexray.storage.manifest import load_manifest

    store = Store.at(url)
    manifest = load_manifest(store)
    manifest.check_shards(store)
    summary = dataset_summary(manifest)
    if as_json:
        print_json({"url": store.url, **summary})
        return
    out = TextConsole()
    out = out if out.is_terminal else TextConsole(width=MIN_TABLE_WIDTH)
    out.print(f"{store.url}\n{manifest.rows:,} rows in {len(manifest.shards)} shards, {manifest.bytes / 1e6:,.1f} MB")
    out.print(_sites_table(summary["sites"]))
    for name, value in manifest.provenance.items():
        out.print(
            f"{name}: {value if isinstance(value, str | int | float) else json.dumps(value)}",
            soft_wrap=True,
            markup=False,
        )


def _sites_table(sites: dict[str, Any]) -> Table:
    columns = ("site", "width", "dtype", "mean squared norm", "norm of the mean", "norm 1 %", "median", "99 %", "max")
    table = Table(*columns, f"above {NORM_RATIO:g} medians", "source", box=None, pad_edge=False)
    for name, site in sites.items():
        quantiles = site["norm_quantiles"]
        table.add_row(
            name,
            str(site["width"]),
            site["dtype"],
            f"{site['mean_squared_norm']:.4g}",
            f"{site['mean_norm']:.4g}",
            *(f"{quantiles[level]:.4g}" for level in ("0.01", "0.5", "0.99", "1")),
            share_in_words(*share_above(quantiles, NORM_RATIO * quantiles["0.5"])),
            site["source"],
        )
    return table


def share_above(quantiles: dict[str, float], norm: float) -> tuple[float, float]:
    """Bounds on the share of rows whose norm is above `norm`, from a site's quantiles: above the first, at most the
    second; (0, 0) when there are none. The norms themselves are not read for it."""
    low = max((1 - float(level) for level, value in quantiles.items() if value > norm), default=0.0)
    high = min((1 - float(level) for level, value in quantiles.items() if value <= norm), default=1.0)
    return low, high


def share_in_words(low: float, high: float) -> str:
    """`no row`, `up to 0.1% of rows`, `1.0% to 10.0% of rows`."""
    if not high:
        return "no row"
    return f"{low:.1%} to {high:.1%} of rows" if low else f"up to {high:.1%} of rows"


def verify_dataset(url: str, messages: Console, as_json: bool) -> int:
    """`lexray data verify`: a table of the sites on stdout, everything damaged on stderr. Exit code 1 when damaged."""
    from lexray.storage.verify import verify

    with rows_progress("verify", messages) as on_progress:
        found = verify(Store.at(url), on_progress=on_progress)
    if as_json:
        print_json(_findings_document(found))
    else:
        _print_findings(found)
        for damage in found.damage:
            messages.print(f"damaged: {damage}", markup=False, highlight=False, soft_wrap=True)
    return OK if found.sound else FAILED


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """Options of `lexray data import`, as they are given."""

    sites: tuple[str, ...] = ()
    document_rows: int | None = None
    dtype: str | None = None
    files: str | None = None
    lists: str | None = None
    raw_dtype: str | None = None
    raw_width: int | None = None


def import_dataset(source: str, url: str, flags: ImportFlags, messages: Console, as_json: bool) -> None:
    """`lexray data import`: url, rows and size of the dataset on stdout; before, its sites and files on stderr."""
    from lexray.storage.imports.array_files import RawFormat
    from lexray.storage.imports.options import ImportOptions, meaning
    from lexray.storage.imports.rows import SiteNames, check_dtype, import_rows
    from lexray.storage.imports.source import open_source
    from lexray.storage.imports.table_files import is_tables
    from lexray.storage.imports.tables import TableFolder
    from lexray.storage.imports.tensors import TensorFolder

    check_dtype(flags.dtype)
    options = ImportOptions(
        names=SiteNames(wanted=flags.sites),
        document_rows=flags.document_rows,
        files=meaning(flags.files, "--files"),
        lists=meaning(flags.lists, "--lists"),
        raw=RawFormat.of(flags.raw_dtype, flags.raw_width),
    )
    folder = open_source(source, url)
    rows = TableFolder(folder, options) if is_tables(folder) else TensorFolder(folder, options)

    def on_start(overview: list[str]) -> None:
        for line in [*overview, *(f"note: {note}" for note in rows.notes)]:
            messages.print(" ".join(line.split()), markup=False, highlight=False, soft_wrap=True)

    with rows_progress("import", messages) as on_progress:
        manifest = import_rows(rows, url, dtype=flags.dtype, on_start=on_start, on_progress=on_progress)
    if as_json:
        files = {
            site: {"files": len(names), "first": names[0], "last": names[-1]} for site, names in rows.files.items()
        }
        print_json({"url": Store.at(url).url, **dataset_summary(manifest), "imported": files, "notes": rows.notes})
        return
    print(f"{Store.at(url).url}: {manifest.rows:,} rows, {manifest.bytes / 1e6:,.1f} MB, imported")


def _print_findings(found: Findings) -> None:
    out = TextConsole()
    out = out if out.is_terminal else TextConsole(width=MIN_TABLE_WIDTH)
    number = len(found.damage)
    verdict = "sound" if found.sound else f"{number:,} {'damage' if number == 1 else 'damages'}, named on stderr"
    shards = len(found.manifest.shards)
    out.print(f"{found.url}: {found.manifest.rows:,} rows in {shards:,} shards, {verdict}", soft_wrap=True)
    columns = (
        "site",
        "rows read",
        "not finite",
        "equal rows",
        "norms",
        "outliers",
        "farthest (row: norm)",
        "statistics",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for name, site in found.sites.items():
        table.add_row(name, *_site_words(site))
    out.print(table)


def _site_words(site: SiteFindings) -> tuple[str, ...]:
    low, high = site.norm_bounds
    worst = ", ".join(f"{row}: {norm:.4g}" for row, norm in site.worst)
    errors = (site.mean_error, site.mean_squared_norm_error, site.quantiles_error)
    statistics = "unknown" if None in errors else f"off by {max(e for e in errors if e is not None):.1g}"
    counts = (f"{site.rows:,}", f"{site.not_finite:,}", f"{site.duplicates:,}")
    return (*counts, f"{low:.4g} to {high:.4g}", f"{site.outliers:,}", worst, statistics)


def _findings_document(found: Findings) -> dict[str, Any]:
    return {
        "url": found.url,
        "sound": found.sound,
        "rows": found.manifest.rows,
        "shards": len(found.manifest.shards),
        "damage": [asdict(damage) for damage in found.damage],
        "sites": {name: asdict(site) for name, site in found.sites.items()},
    }
