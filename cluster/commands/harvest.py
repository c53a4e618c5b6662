"""`lexray harvest`: a model and its inputs become a dataset of activations."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer

from lexray.cluster.consoles import say
from lexray.cluster.options import Json, messages
from lexray.cluster.output import dataset_summary, print_json, rows_progress
from lexray.storage.config_file import read_config_file
from lexray.storage.store import Store

harvest_app = typer.Typer()


@harvest_app.command()
def harvest(
    file: Annotated[Path, typer.Argument(help="Harvest file (YAML).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to work on; without it this machine.")] = None,
    as_json: Json = False,
) -> None:
    """Turn a model and a text, or images, into a dataset of activations. Run it again to continue.

    Example: lexray harvest examples/quickstart/harvest.yaml
    """
    from lexray.storage.harvest.corpus_report import report_lines
    from lexray.storage.harvest.harvest import harvest
    from lexray.storage.harvest.harvest_file import HarvestFile

    def connect() -> AbstractContextManager[None]:
        from lexray.cluster.ray_backend.connect import connected

        return connected(address)

    config = read_config_file(str(file), HarvestFile)
    with rows_progress("harvest", messages) as on_progress:

        def on_tokens(found: int, wanted: int | None) -> None:
            on_progress(found, wanted, label="tokenize")

        manifest, reused = harvest(
            config, on_progress=on_progress, on_tokens=on_tokens, connect=connect, joins=address is not None
        )
    for line in report_lines(manifest.provenance.get("corpus", {})):
        say(messages, f"corpus: {line}")
    url = Store.at(config.output).url
    if as_json:
        print_json({"url": url, "reused": reused, **dataset_summary(manifest)})
        return
    said = "there already, reused" if reused else "written"
    print(f"{url}: {manifest.rows:,} rows, {manifest.bytes / 1e6:,.1f} MB, {said}")
