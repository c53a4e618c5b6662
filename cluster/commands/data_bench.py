"""`lexray data bench`: how fast a dataset is read here, and how many workers a dictionary could feed from it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lexray.cluster.consoles import TextConsole, plain_table
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.errors import UserError
from lexray.storage.store import Store, reachable
from lexray.storage.synthetic_url import SCHEME

if TYPE_CHECKING:
    from lexray.storage.manifest import Manifest
    from lexray.training.config import DataConfig
    from lexray.training.dictionaries.base import DictionaryConfig

CORE_SECONDS = 1.0
"""Longest measurement of checksums and permutation on one core, in seconds."""


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
    store = Store.at(url)
    with reachable("dataset", store.url):
        dictionary = _dictionary(architecture, width=width, target_l0=target_l0)
        result = measure(store, tuple(site or ()), dictionary, batch_rows, seconds=seconds, parallel=parallel)
    if as_json:
        print_json(result)
        return
    _print_result(result)


def _dictionary(architecture: str | None, **given: float | None) -> DictionaryConfig | None:
    """Return the dictionary whose step is timed, a topk if none is named; None without any option of one."""
    from lexray.training.dictionaries import dictionary_config

    options = {name: value for name, value in given.items() if value is not None}
    if not options and architecture is None:
        return None
    return dictionary_config({"architecture": architecture or "topk", **options})


def measure(
    store: Store, wanted: tuple[str, ...], dictionary: DictionaryConfig | None, batch_rows: int, *,
    seconds: float, parallel: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure stream, plain reads, one core and the training step in turn, each for `seconds`.

    Reads the `wanted` sites, or all. Returns the document that `--json` prints; its `dictionary` is null when none was
    given. Raises UserError for wrong options first.
    """
    from lexray.storage.bench import core_speed, plain_reads, stream_speed
    from lexray.storage.manifest import load_manifest
    from lexray.storage.reader import DatasetReader

    if store.scheme == SCHEME:
        raise UserError(
            f"{store.url}: is generated, so there is no store to measure; run python -m benchmarks.synthetic"
        )
    manifest = load_manifest(store)
    manifest.check_shards(store)
    sites = sites_to_read(manifest, wanted, dictionary)
    data = _data_config(store, manifest, sites, dictionary, batch_rows)
    spec, dataset = data.stream_spec("train"), DatasetReader(store, manifest)
    with messages.status("reading the stream"):  # first: what is wrong with the options shows at its beginning
        stream = stream_speed(spec, batch_rows=data.batch_rows, seconds=seconds)
    with messages.status(f"reading chunks, {parallel} at once"):
        plain = plain_reads(dataset, sites, seconds=seconds, parallel=parallel)
    with messages.status("checking and permuting in memory"):
        core = core_speed(spec, seconds=min(CORE_SECONDS, seconds))
    checksums, permuting = core.share_of_core(stream.mb_per_s)
    timed = None if dictionary is None else _timed(dictionary, data, manifest, stream.rows_per_s, seconds)
    return {
        "url": store.url,
        "id": manifest.id,
        "sites": list(sites),
        "batch_rows": data.batch_rows,
        "plain": {**asdict(plain), "mb_per_s": plain.mb_per_s, "gets_per_s": plain.gets_per_s},
        "stream": {**asdict(stream), "mb_per_s": stream.mb_per_s, "rows_per_s": stream.rows_per_s},
        "core": {**asdict(core), "checksums_share": checksums, "permuting_share": permuting},
        "dictionary": timed,
    }


def _timed(
    dictionary: DictionaryConfig, data: DataConfig, manifest: Manifest, stream_rows_per_s: float, seconds: float
) -> dict[str, Any]:
    """Time the training step of a dictionary; return it with the number of workers that the stream can feed."""
    from lexray.cluster.commands.step_timer import StepTimer
    from lexray.storage.bench import Feeding

    with messages.status("training on rows in memory"):
        step_rows_per_s = StepTimer(data, dictionary, manifest).trained_rows_per_s(seconds)
    feeding = Feeding(stream_rows_per_s=stream_rows_per_s, step_rows_per_s=step_rows_per_s)
    named = f"{dictionary.architecture} of width {dictionary.width:,} and L0 {dictionary.target_l0:g}"
    return {
        **dictionary.to_dict(),
        "step_rows_per_s": step_rows_per_s,
        "workers_fed": feeding.workers_fed,
        "io_bound_workers": feeding.io_bound_workers,
        "sentence": feeding.sentence(named),
    }


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


def _print_result(result: dict[str, Any]) -> None:
    out = TextConsole()
    plain, stream, core, timed = (result[name] for name in ("plain", "stream", "core", "dictionary"))
    reads = "1 read at a time" if plain["parallel"] == 1 else f"{plain['parallel']} reads at once"
    rows: list[tuple[str, float, str]] = [
        ("plain reads", plain["mb_per_s"], f"{plain['gets_per_s']:,.0f} GETs/s, {reads}"),
        ("stream", stream["mb_per_s"], f"{stream['rows_per_s']:,.0f} rows/s"),
    ]
    for name, speed in (("checksums", "checksum_mb_per_s"), ("permuting", "permute_mb_per_s")):
        rows.append((name, core[speed], f"on one core: the stream needs {core[f'{name}_share']:.1%} of it"))
    if timed is not None:
        step_rows_per_s = timed["step_rows_per_s"]
        needed = stream["mb_per_s"] * step_rows_per_s / stream["rows_per_s"]
        rows.append(("training", needed, f"{step_rows_per_s:,.0f} rows/s of one worker"))
    out.print(f"{result['url']}: {', '.join(result['sites'])}", soft_wrap=True)
    cells = ((name, f"{mb_per_s:,.0f}", what) for name, mb_per_s, what in rows)
    out.print(plain_table(("", "MB/s", ""), cells, right=("MB/s",)))
    if timed is not None:
        out.print(timed["sentence"], soft_wrap=True)
