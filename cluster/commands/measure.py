"""`lexray measure` and `lexray diagnose`: what is measured of a finished dictionary, for any saved one.

`diagnose` says which latents of a crosscoder are shared, specific to a site, or artefacts of its training.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lexray.cluster.consoles import TextConsole, plain_table
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json
from lexray.storage.config_file import mapping_of
from lexray.storage.errors import UserError
from lexray.storage.store import Store

if TYPE_CHECKING:
    from lexray.training.config import DataConfig
    from lexray.training.dictionaries.base import Dictionary

measure_app = typer.Typer()

Moved = Annotated[str | None, typer.Option(help="Where its dataset lies now, if it was moved.")]
Rows = Annotated[int, typer.Option(min=1, help="Test rows to read at most.")]
ROWS = 65_536


@measure_app.command()
def diagnose(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY", help="Folder of a saved crosscoder: path or url.")],
    data: Moved = None,
    rows: Rows = ROWS,
    as_json: Json = False,
) -> None:
    """Say which latents of a crosscoder are shared by its sites, specific to one, or artefacts (latent scaling).

    Example: lexray diagnose runs/architectures/sweep/trials/TRIAL/dictionary
    """
    from lexray.storage.stream import local_stream
    from lexray.training.engines.batches import raw_rows
    from lexray.training.measures.latent_scaling import latent_scaling

    dictionary, config = _with_its_data(url, data)
    with messages.status("reading test rows"):
        stream = local_stream(config.stream_spec("test"), batch_rows=config.batch_rows)
        batches = (raw_rows(batch, config) for batch in stream.every_row(rows))
        found = latent_scaling(dictionary, batches)
    sites = list(config.inputs)
    if as_json:
        print_json({"sites": sites, "counts": found.counts(), "latents": _latents(found, sites)})
        return
    TextConsole().print(_verdict_table(found, sites))


@measure_app.command()
def measure(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY", help="Folder of a saved dictionary: path or url.")],
    data: Moved = None,
    rows: Rows = ROWS,
    every_atom: Annotated[bool, typer.Option("--every-atom", help="Compare all atoms, however many.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Write measures.json beside the dictionary.")] = False,
    model: Annotated[str | None, typer.Option(help="Language model to put reconstructions into; with --texts.")] = None,
    texts: Annotated[str | None, typer.Option(help="Its texts: path or glob of files, .jsonl or .parquet.")] = None,
    site: Annotated[str | None, typer.Option(help="'NAME: {hidden_state: 3}' if the dataset does not tell.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the texts to read at most.")] = 16_384,
    as_json: Json = False,
) -> None:
    """Measure a dictionary on test rows: firing, likeness, FVU against k, bits, coherence; and in its model.

    Example: lexray measure runs/quickstart/sweep/trials/TRIAL/dictionary
    """
    from lexray.storage.stream import local_stream
    from lexray.training.measures.coherence import COMPARE_FLOP
    from lexray.training.measures.held_out import measure_held_out, write_measures
    from lexray.training.measures.texts import HarvestFacts
    from lexray.training.mesh.device import device_of_command

    if (model is None) != (texts is None):
        raise UserError("measure: --model and --texts go together")
    dictionary, config = _with_its_data(url, data)
    device = device_of_command().type
    with messages.status("reading test rows"):
        stream = local_stream(config.stream_spec("test"), batch_rows=config.batch_rows)
        if stream.manifest.id != config.dataset_id:
            raise UserError(f"data: {config.url} holds dataset {stream.manifest.id}, trained on {config.dataset_id}")
        max_flop = None if every_atom else COMPARE_FLOP
        found = measure_held_out(dictionary, stream, config, max_rows=rows, device=device, max_flop=max_flop)
    if model is not None and texts is not None:
        facts = HarvestFacts.of(stream.manifest.provenance, _given_sites(site))
        with messages.status("running the language model"):
            lost = _in_model(dictionary, model, texts, tokens, facts, config, stream.manifest, device)
        found.document["language_model"] = {"model": model, "texts": texts, **lost}
    if save:
        write_measures(_folder_of(Store.at(url)), found)
    if as_json:
        print_json(found.document)
        return
    TextConsole().print(_table(found.document))


def _with_its_data(url: str, data: str | None) -> tuple[Dictionary, DataConfig]:
    """Load a saved dictionary, and say which rows it was trained on, now at `data` if given. Raises UserError."""
    from lexray.training.checkpoint.saved import load_dictionary, read_dictionary_config
    from lexray.training.config import TrainingConfig

    content = read_dictionary_config(Store.at(url))
    dictionary = load_dictionary(url)
    if "training" not in content:
        raise UserError(f"dictionary {url}: it does not say what it was trained on, so there are no rows to read")
    config = TrainingConfig.from_dict(content["training"]).data
    return dictionary, config if data is None else replace(config, url=Store.at(data).url)


def _in_model(
    dictionary: Any, model: str, texts: str, max_tokens: int, facts: Any, config: Any, manifest: Any, device: str
) -> dict[str, Any]:
    """Return what the language model loses, on at most `max_tokens` tokens of the texts."""
    from lexray.training.measures.splice import recovered
    from lexray.training.measures.texts import load_spliced, piece_batches, text_choice

    spliced = load_spliced(model, facts, config.inputs, config.reconstructed, device)
    batches = piece_batches(model, facts, text_choice(texts), max_tokens=max_tokens, device=device)
    limits: tuple[float, ...] = ()
    if config.max_norm_ratio is not None:
        medians = [manifest.site(name).norm_quantiles["0.5"] for name in (*config.inputs, *config.reconstructed)]
        limits = tuple(config.max_norm_ratio * median for median in medians)
    return recovered(spliced, dictionary, batches, max_norms=limits)


def _given_sites(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        given = mapping_of(text, "--site")
    except UserError:
        given = None
    if given is None:
        raise UserError(f"--site: {text!r} is not of the form 'NAME: {{hidden_state: 3}}'")
    return given


def _folder_of(store: Store) -> Store:
    parent, _, name = store.url.rstrip("/").rpartition("/")
    if name != "dictionary":
        raise UserError(f"--save: writes beside a trial's folder `dictionary`, {store.url} is none")
    return Store(parent, store.settings)


def _table(document: dict[str, Any]) -> Table:
    """The numbers that are read first."""
    firing, coherence = document["firing"], document["coherence"]
    rows: list[tuple[str, Any]] = [
        ("rows", document["rows"]),
        ("FVU", document["fvu"]),
        ("L0", firing["l0"]),
        ("dead latents", firing["dead_fraction"]),
        (f"dense latents (in more than {firing['dense_above']:g} of the rows)", firing["dense_fraction"]),
        *((name.replace("_", " "), value) for name, value in document["likeness"].items()),
        *((f"FVU at k {point['k']}", point["fvu"]) for point in document["curve"]["points"] if point["k"] is not None),
        *((f"bits per row at FVU {fvu}", b) for fvu, b in document["description_length"]["bits_at_fvu"].items()),
        ("largest |cos| of atoms", coherence["max_cosine"]),
        ("mean largest |cos|", coherence["mean_max_cosine"]),
        (f"Babel function at {coherence['p']}", coherence["babel"]),
        ("duplicate atoms", coherence["duplicate_fraction"]),
    ]
    scaling = document.get("latent_scaling", {})
    rows += [(f"latents: {verdict}", count) for verdict, count in scaling.get("latents", {}).items()]
    rows += [(name.replace("_", " "), value) for name, value in scaling.items() if name != "latents"]
    model = document.get("language_model", {})
    rows += [(f"CE {case}", value) for case, value in model.get("ce", {}).items()]
    rows += [(name.replace("_", " "), value) for name, value in model.items() if "recovered" in name]
    return plain_table(("measure", "value"), ((name, "-" if value is None else f"{value:.6g}") for name, value in rows))


def _verdict_table(found: Any, sites: list[str]) -> Table:
    """Number of latents by verdict, and by the site at which they are longest."""
    rows = []
    for name, count in sorted(found.counts().items(), key=lambda item: -item[1]):
        own = [own for own, verdict in zip(found.own_site_F.tolist(), found.verdicts, strict=True) if verdict == name]
        rows.append((name, str(count), *(str(own.count(index)) for index in range(len(sites)))))
    return plain_table(("verdict", "latents", *sites), rows)


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
