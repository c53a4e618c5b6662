"""`lexray data`: look at datasets of activations, check and import them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lexray.cluster.commands.data_bench import bench
from lexray.cluster.consoles import plain_table, say, wide_console
from lexray.cluster.options import Json, messages
from lexray.cluster.output import FAILED, OK, dataset_summary, print_json, rows_progress
from lexray.storage.store import Store
from lexray.storage.synthetic_url import SCHEME

if TYPE_CHECKING:
    from lexray.storage.site_statistics import SiteFindings
    from lexray.storage.verify import Findings

data_app = typer.Typer(no_args_is_help=True, help="Look at datasets of activations, check, measure and import them.")
data_app.command("bench")(bench)

NORM_RATIO = 10.0
"""Rows of a norm above so many medians are left out of training unless a sweep says otherwise."""
MIN_TABLE_WIDTH = 160
"""Columns of a table that is not printed to a terminal."""


@data_app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Folder of a dataset: path or url.")],
    as_json: Json = False,
) -> None:
    """Show what a dataset holds.

    Example: lexray data inspect runs/quickstart/activations
    """
    from lexray.storage.manifest import load_manifest

    store = Store.at(url)
    manifest = load_manifest(store)
    manifest.check_shards(store)
    summary = dataset_summary(manifest)
    if as_json:
        print_json({"url": store.url, **summary})
        return
    out = wide_console(MIN_TABLE_WIDTH)
    held = "generated where they are read" if store.scheme == SCHEME else f"in {len(manifest.shards)} shards"
    out.print(f"{store.url}\n{manifest.rows:,} rows {held}, {manifest.bytes / 1e6:,.1f} MB")
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


@data_app.command("verify")
def verify_(
    url: Annotated[str, typer.Argument(help="Folder of a dataset: path or url.")],
    as_json: Json = False,
) -> None:
    """Read every row of a dataset: checksums, shapes, NaN and Inf, equal rows, unusual norms, statistics.

    What is damaged is named on stderr; exit code 1 when anything is.

    Example: lexray data verify runs/quickstart/activations
    """
    from lexray.storage.verify import verify

    with rows_progress("verify", messages) as on_progress:
        found = verify(Store.at(url), on_progress=on_progress)
    if as_json:
        print_json(_findings_document(found))
    else:
        _print_findings(found)
        for damage in found.damage:
            say(messages, f"damaged: {damage}")
    raise typer.Exit(OK if found.sound else FAILED)


@data_app.command("import")
def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder of tensor files or tables: path or url.")],
    url: Annotated[str, typer.Argument(help="Folder of the dataset to write: path or url.")],
    site: Annotated[list[str] | None, typer.Option(help="NAME or NEW=NAME of a site, several times.")] = None,
    document_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a document, where none are told.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16, float16 or float32; else the source's own.")] = None,
    files: Annotated[str | None, typer.Option(help="Files side by side: rows of one site, or sites.")] = None,
    lists: Annotated[str | None, typer.Option(help="Tensors of a list: rows of one site, or sites.")] = None,
    raw_dtype: Annotated[str | None, typer.Option(help="Dtype of raw numbers (np.memmap), as float32.")] = None,
    raw_width: Annotated[int | None, typer.Option(help="Numbers of a row in raw files.")] = None,
    as_json: Json = False,
) -> None:
    """Turn .npy, .npz, .pt, .safetensors or raw files, or tables (Parquet, datasets, SAELens), into a dataset.

    Example: lexray data import downloads/layer8 runs/layer8
    """
    from lexray.storage.imports.array_files import RawFormat
    from lexray.storage.imports.rows import ImportOptions, SiteNames, check_dtype, import_rows, meaning
    from lexray.storage.imports.source import open_source
    from lexray.storage.imports.table_files import is_tables
    from lexray.storage.imports.tables import TableFolder
    from lexray.storage.imports.tensors import TensorFolder

    check_dtype(dtype)
    options = ImportOptions(
        names=SiteNames(wanted=tuple(site or ())),
        document_rows=document_rows,
        files=meaning(files, "--files"),
        lists=meaning(lists, "--lists"),
        raw=RawFormat.of(raw_dtype, raw_width),
    )
    folder = open_source(source, url)
    rows = TableFolder(folder, options) if is_tables(folder) else TensorFolder(folder, options)

    def on_start(overview: list[str]) -> None:
        for line in [*overview, *(f"note: {note}" for note in rows.notes)]:
            say(messages, " ".join(line.split()))

    with rows_progress("import", messages) as on_progress:
        manifest = import_rows(rows, url, dtype=dtype, on_start=on_start, on_progress=on_progress)
    if as_json:
        found = {name: {"files": len(of), "first": of[0], "last": of[-1]} for name, of in rows.files.items()}
        print_json({"url": Store.at(url).url, **dataset_summary(manifest), "imported": found, "notes": rows.notes})
        return
    print(f"{Store.at(url).url}: {manifest.rows:,} rows, {manifest.bytes / 1e6:,.1f} MB, imported")


def _print_findings(found: Findings) -> None:
    out = wide_console(MIN_TABLE_WIDTH)
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
    out.print(plain_table(columns, ((name, *_site_words(site)) for name, site in found.sites.items())))


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
