"""`lexray data bench`: how fast a dataset is read here, and how many workers a dictionary could feed from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lexray.cluster.consoles import TextConsole
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.errors import UserError
from lexray.storage.store import Store, reachable

if TYPE_CHECKING:
    from lexray.storage.bench import CoreSpeed, Feeding, ReadSpeed, StreamSpeed
    from lexray.storage.manifest import Manifest
    from lexray.training.config import DataConfig
    from lexray.training.dictionaries.base import DictionaryConfig

CORE_SECONDS = 1.0
"""Longest measurement of checksums and permutation on one core, in seconds."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of the measurement."""

    sites: tuple[str, ...]
    """Sites to read; none given: all, or the one that the dictionary reads."""
    seconds: float
    """Duration of each measurement."""
    parallel: int
    """Concurrent plain reads."""
    batch_rows: int
    architecture: str | None
    """Architecture of the timed dictionary; None means `topk` if a width is given."""
    width: int | None
    target_l0: float | None

    def dictionary(self) -> DictionaryConfig | None:
        """Return the dictionary whose step is timed, or None. Raises UserError if an option is missing."""
        from lexray.training.dictionaries import dictionary_config

        given = {"width": self.width, "target_l0": self.target_l0}
        given = {name: value for name, value in given.items() if value is not None}
        if not given and self.architecture is None:
            return None
        return dictionary_config({"architecture": self.architecture or "topk", **given})


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """Results of all measurements."""

    url: str
    manifest: Manifest
    sites: tuple[str, ...]
    batch_rows: int
    plain: ReadSpeed
    stream: StreamSpeed
    core: CoreSpeed
    dictionary: DictionaryConfig | None
    feeding: Feeding | None


def bench(
    url: Annotated[str, typer.Argument(help="Folder of a dataset: path or url.")],
    site: Annotated[list[str] | None, typer.Option(help="Read this site, several times for more; else all.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 10.0,
    parallel: Annotated[int, typer.Option(min=1, help="Plain reads under way at once.")] = 8,
    batch_rows: Annotated[int, typer.Option(min=1, help="Rows of a batch.")] = 4096,
    architecture: Annotated[str | None, typer.Option(help="Dictionary whose step is measured.")] = None,
    width: Annotated[int | None, typer.Option(help="Its latents (a topk's, if no other is named).")] = None,
    target_l0: Annotated[float | None, typer.Option(help="Its active latents per row.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a dataset is read here, and with how many workers a dictionary would wait for it.

    Example: lexray data bench s3://bucket/activations --width 16384 --target-l0 32
    """
    options = BenchOptions(
        sites=tuple(site or ()),
        seconds=seconds,
        parallel=parallel,
        batch_rows=batch_rows,
        architecture=architecture,
        width=width,
        target_l0=target_l0,
    )
    store = Store.at(url)
    with reachable("dataset", store.url):
        result = measure(store, options, messages)
    if as_json:
        print_json(result_document(result))
        return
    _print_result(result)


def measure(store: Store, options: BenchOptions, messages: Console) -> BenchResult:
    """Measure stream, plain reads, one core and the training step in turn. Raises UserError for wrong options first."""
    from lexray.cluster.commands.step_timer import StepTimer
    from lexray.storage.bench import Feeding, core_speed, plain_reads, stream_speed
    from lexray.storage.manifest import load_manifest
    from lexray.storage.reader import DatasetReader

    dictionary = options.dictionary()
    manifest = load_manifest(store)
    manifest.check_shards(store)
    sites = sites_to_read(manifest, options.sites, dictionary)
    data = _data_config(store, manifest, sites, dictionary, options.batch_rows)
    spec, dataset = data.stream_spec("train"), DatasetReader(store, manifest)
    with messages.status("reading the stream"):  # first: what is wrong with the options shows at its beginning
        stream = stream_speed(spec, batch_rows=data.batch_rows, seconds=options.seconds)
    with messages.status(f"reading chunks, {options.parallel} at once"):
        plain = plain_reads(dataset, sites, seconds=options.seconds, parallel=options.parallel)
    with messages.status("checking and permuting in memory"):
        core = core_speed(spec, seconds=min(CORE_SECONDS, options.seconds))
    feeding = None
    if dictionary is not None:
        with messages.status("training on rows in memory"):
            step_rows_per_s = StepTimer(data, dictionary, manifest).trained_rows_per_s(options.seconds)
        feeding = Feeding(stream_rows_per_s=stream.rows_per_s, step_rows_per_s=step_rows_per_s)
    return BenchResult(
        url=store.url,
        manifest=manifest,
        sites=sites,
        batch_rows=data.batch_rows,
        plain=plain,
        stream=stream,
        core=core,
        dictionary=dictionary,
        feeding=feeding,
    )


def sites_to_read(manifest: Manifest, wanted: tuple[str, ...], dictionary: DictionaryConfig | None) -> tuple[str, ...]:
    """Return the requested sites, or all. Raises UserError if their number does not fit the dictionary."""
    from lexray.training.dictionaries import architecture

    sites = tuple(dict.fromkeys(wanted)) or tuple(manifest.sites)
    for site in sites:
        manifest.site(site, field="--site")
    if dictionary is None:
        return sites
    kind = architecture(dictionary.architecture).kind
    fits, needs = {
        "sae": (len(sites) == 1, "one site"),
        "transcoder": (len(sites) == 2, "two sites, the one it reads and the one it reconstructs"),
        "crosscoder": (len(sites) >= 2, "two sites or more"),
    }[kind]
    if not fits:
        has = f"{len(sites)} given" if wanted else f"the dataset has {len(sites)}"
        raise UserError(
            f"--site: {dictionary.architecture} is for {needs}, {has}; choose from {', '.join(manifest.sites)}"
        )
    return sites


def _data_config(
    store: Store, manifest: Manifest, sites: tuple[str, ...], dictionary: DictionaryConfig | None, batch_rows: int
) -> DataConfig:
    """Return the data configuration of a sweep that sets only sites and batch size."""
    from lexray.training.config import DataConfig
    from lexray.training.dictionaries import architecture

    translates = dictionary is not None and architecture(dictionary.architecture).kind == "transcoder"
    inputs, outputs = (sites[:1], sites[1:]) if translates else (sites, ())
    return DataConfig(url=store.url, dataset_id=manifest.id, inputs=inputs, outputs=outputs, batch_rows=batch_rows)


def result_document(result: BenchResult) -> dict[str, Any]:
    """Return the document that `--json` prints; `dictionary` is null when none was given."""
    checksums, permuting = result.core.share_of_core(result.stream.mb_per_s)
    document: dict[str, Any] = {
        "url": result.url,
        "id": result.manifest.id,
        "sites": list(result.sites),
        "batch_rows": result.batch_rows,
        "plain": {**asdict(result.plain), "mb_per_s": result.plain.mb_per_s, "gets_per_s": result.plain.gets_per_s},
        "stream": {**asdict(result.stream), "mb_per_s": result.stream.mb_per_s, "rows_per_s": result.stream.rows_per_s},
        "core": {**asdict(result.core), "checksums_share": checksums, "permuting_share": permuting},
        "dictionary": None,
    }
    if result.dictionary is not None and result.feeding is not None:
        document["dictionary"] = {
            **result.dictionary.to_dict(),
            "step_rows_per_s": result.feeding.step_rows_per_s,
            "workers_fed": result.feeding.workers_fed,
            "io_bound_workers": result.feeding.io_bound_workers,
            "sentence": result.feeding.sentence(_named(result.dictionary)),
        }
    return document


def _print_result(result: BenchResult) -> None:
    out = TextConsole()
    plain, stream = result.plain, result.stream
    checksums, permuting = result.core.share_of_core(stream.mb_per_s)
    reads = "1 read at a time" if plain.parallel == 1 else f"{plain.parallel} reads at once"
    out.print(f"{result.url}: {', '.join(result.sites)}", soft_wrap=True)
    table = Table("", "MB/s", "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    table.add_row("plain reads", f"{plain.mb_per_s:,.0f}", f"{plain.gets_per_s:,.0f} GETs/s, {reads}")
    table.add_row("stream", f"{stream.mb_per_s:,.0f}", f"{stream.rows_per_s:,.0f} rows/s")
    table.add_row(
        "checksums", f"{result.core.checksum_mb_per_s:,.0f}", f"on one core: the stream needs {checksums:.1%} of it"
    )
    table.add_row(
        "permuting", f"{result.core.permute_mb_per_s:,.0f}", f"on one core: the stream needs {permuting:.1%} of it"
    )
    if result.dictionary is not None and result.feeding is not None:
        speed = result.feeding.step_rows_per_s
        needed = stream.mb_per_s * speed / stream.rows_per_s
        table.add_row("training", f"{needed:,.0f}", f"{speed:,.0f} rows/s of one worker")
    out.print(table)
    if result.dictionary is not None and result.feeding is not None:
        out.print(result.feeding.sentence(_named(result.dictionary)), soft_wrap=True)


def _named(dictionary: DictionaryConfig) -> str:
    return f"{dictionary.architecture} of width {dictionary.width:,} and L0 {dictionary.target_l0:g}"
