"""What `lexray data` does; `cli` says how it is called. Imports are late: `lexray --help` should not load torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.commands import FAILED, OK, dataset_summary, print_json, rows_progress
from storage.store import Store

if TYPE_CHECKING:
    from storage.row_checks import SiteFindings
    from storage.verify import Findings

MIN_TABLE_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


def inspect_dataset(url: str, messages: Console, as_json: bool) -> None:
    """`lexray data inspect`: sites, rows, shards and origin of a dataset."""
    from storage.manifest import load_manifest

    store = Store.at(url)
    manifest = load_manifest(store)
    manifest.check_shards(store)
    summary = dataset_summary(manifest)
    if as_json:
        print_json({"url": store.url, **summary})
        return
    out = Console(highlight=False)
    out.print(
        f"{escape(store.url)}\n{manifest.rows:,} rows in {len(manifest.shards)} shards, {manifest.bytes / 1e6:,.1f} MB"
    )
    table = Table("site", "width", "dtype", "mean squared norm", "norm of the mean", "source", box=None)
    for name, site in summary["sites"].items():
        numbers = (f"{site['mean_squared_norm']:.4g}", f"{site['mean_norm']:.4g}")
        table.add_row(name, str(site["width"]), site["dtype"], *numbers, site["source"])
    out.print(table)
    for name, value in manifest.provenance.items():
        out.print(
            f"{name}: {value if isinstance(value, str | int | float) else json.dumps(value)}",
            soft_wrap=True,
            markup=False,
        )


def verify_dataset(url: str, messages: Console, as_json: bool) -> int:
    """`lexray data verify`: a table of the sites on stdout, everything damaged on stderr. Exit code 1 when damaged."""
    from storage.verify import verify

    with rows_progress("verify", messages) as on_progress:
        found = verify(Store.at(url), on_progress=on_progress)
    if as_json:
        print_json(_findings_document(found))
    else:
        _print_findings(found)
        for damage in found.damage:
            messages.print(f"damaged: {damage}", markup=False, highlight=False, soft_wrap=True)
    return OK if found.sound else FAILED


def import_dataset(
    source: str,
    url: str,
    sites: tuple[str, ...],
    document_rows: int | None,
    dtype: str | None,
    messages: Console,
    as_json: bool,
) -> None:
    """`lexray data import`: the dataset's url, rows and size on stdout, what had to be made up on stderr."""
    from storage.import_rows import SiteNames, check_dtype, check_local_source, import_rows
    from storage.import_sae_lens import SaeLensCache, is_sae_lens_cache
    from storage.import_tensors import TensorFolder

    check_dtype(dtype)
    folder = check_local_source(source, url)
    reader = SaeLensCache if is_sae_lens_cache(folder) else TensorFolder
    rows = reader(folder, SiteNames(wanted=sites), document_rows)
    with rows_progress("import", messages) as on_progress:
        manifest = import_rows(rows, url, dtype=dtype, on_progress=on_progress)
    if as_json:
        print_json({"url": Store.at(url).url, **dataset_summary(manifest), "notes": rows.notes})
        return
    print(f"{Store.at(url).url}: {manifest.rows:,} rows, {manifest.bytes / 1e6:,.1f} MB, imported")
    for note in rows.notes:
        messages.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _print_findings(found: Findings) -> None:
    out = Console(highlight=False)
    out = out if out.is_terminal else Console(highlight=False, width=MIN_TABLE_WIDTH)
    number = len(found.damage)
    verdict = "sound" if found.sound else f"{number:,} {'damage' if number == 1 else 'damages'}, named on stderr"
    shards = len(found.manifest.shards)
    out.print(f"{escape(found.url)}: {found.manifest.rows:,} rows in {shards:,} shards, {verdict}", soft_wrap=True)
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
        table.add_row(escape(name), *_site_words(site))
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
