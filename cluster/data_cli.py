"""`lexray data`: how its commands are called; what they do is in `data_commands` and `data_bench_commands`."""

from __future__ import annotations

from typing import Annotated

import typer

from lexray.cluster.consoles import TextConsole

data_app = typer.Typer(no_args_is_help=True, help="Look at datasets of activations, check, measure and import them.")
messages = TextConsole(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@data_app.command()
def inspect(
    url: Annotated[str, typer.Argument(help="Folder of a dataset: path or url.")],
    as_json: Json = False,
) -> None:
    """Show what a dataset holds.

    Example: lexray data inspect runs/quickstart/activations
    """
    from lexray.cluster.data_commands import inspect_dataset

    inspect_dataset(url, messages, as_json)


@data_app.command()
def verify(
    url: Annotated[str, typer.Argument(help="Folder of a dataset: path or url.")],
    as_json: Json = False,
) -> None:
    """Read every row of a dataset: checksums, shapes, NaN and Inf, equal rows, unusual norms, statistics.

    Example: lexray data verify runs/quickstart/activations
    """
    from lexray.cluster.data_commands import verify_dataset

    raise typer.Exit(verify_dataset(url, messages, as_json))


@data_app.command("bench")
def bench_data(
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
    from lexray.cluster.data_bench_commands import BenchOptions, bench_dataset

    options = BenchOptions(
        sites=tuple(site or ()),
        seconds=seconds,
        parallel=parallel,
        batch_rows=batch_rows,
        architecture=architecture,
        width=width,
        target_l0=target_l0,
    )
    bench_dataset(url, options, messages, as_json)


@data_app.command("import")
def import_rows(
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
    from lexray.cluster.data_commands import ImportFlags, import_dataset

    flags = ImportFlags(
        sites=tuple(site or ()),
        document_rows=document_rows,
        dtype=dtype,
        files=files,
        lists=lists,
        raw_dtype=raw_dtype,
        raw_width=raw_width,
    )
    import_dataset(source, url, flags, messages, as_json)
