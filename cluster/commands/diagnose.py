"""`lexray diagnose`: which latents of a crosscoder are shared, specific to a site, or artefacts of its training."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from lexray.cluster.consoles import TextConsole
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.errors import UserError
from lexray.storage.store import Store

diagnose_app = typer.Typer()


@diagnose_app.command()
def diagnose(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY", help="Folder of a saved crosscoder: path or url.")],
    data: Annotated[str | None, typer.Option(help="Where its dataset lies now, if it was moved.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Test rows to read at most.")] = 65_536,
    as_json: Json = False,
) -> None:
    """Say which latents of a crosscoder are shared by its sites, specific to one, or artefacts (latent scaling).

    Example: lexray diagnose runs/architectures/sweep/trials/TRIAL/dictionary
    """
    from lexray.storage.stream import local_stream
    from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
    from lexray.training.config import TrainingConfig
    from lexray.training.engines.batches import raw_rows
    from lexray.training.measures.latent_scaling import latent_scaling

    content = read_dictionary_config(Store.at(url))
    dictionary = load_dictionary(url)
    if "training" not in content:
        raise UserError(f"dictionary {url}: it does not say what it was trained on, so there are no rows to read")
    config = TrainingConfig.from_dict(content["training"]).data
    if data is not None:
        config = replace(config, url=Store.at(data).url)
    with messages.status("reading test rows"):
        stream = local_stream(config.stream_spec("test"), batch_rows=config.batch_rows)
        batches = (raw_rows(batch, config) for batch in stream.every_row(rows))
        found = latent_scaling(dictionary, batches)
    sites = list(config.inputs)
    if as_json:
        print_json({"sites": sites, "counts": found.counts(), "latents": _latents(found, sites)})
        return
    TextConsole().print(_table(found, sites))


def _table(found: Any, sites: list[str]) -> Table:
    """Number of latents by verdict, and by the site at which they are longest."""
    table = Table("verdict", "latents", *sites, box=None, pad_edge=False)
    for name, count in sorted(found.counts().items(), key=lambda item: -item[1]):
        own = [own for own, verdict in zip(found.own_site_F.tolist(), found.verdicts, strict=True) if verdict == name]
        table.add_row(name, str(count), *(str(own.count(index)) for index in range(len(sites))))
    return table


def _latents(found: Any, sites: list[str]) -> list[dict[str, Any]]:
    def by_site(values_S: Any) -> dict[str, float | None]:
        numbers = [None if math.isnan(value) else value for value in values_S.tolist()]
        return dict(zip(sites, numbers, strict=True))

    return [
        {
            "latent": index,
            "verdict": verdict,
            "site": sites[int(found.own_site_F[index])],
            "norms": by_site(found.norms_FS[index]),
            "nu_error": by_site(found.nu_error_FS[index]),
            "nu_reconstruction": by_site(found.nu_reconstruction_FS[index]),
        }
        for index, verdict in enumerate(found.verdicts)
    ]
