"""Commands for trained dictionaries: export, import, diagnose, measure; and problems with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lexray.cluster.consoles import TextConsole

dictionary_app = typer.Typer()
bench_app = typer.Typer(no_args_is_help=True, help="Measure lexray on problems with known answers.")
messages = TextConsole(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@dictionary_app.command("export")
def export_(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY", help="Folder of a saved dictionary: path or url.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder to write; it must not exist or be empty.")],
    to: Annotated[str, typer.Option(help="sae-lens, dictionary-learning or sparsify.")],
    unit_atoms: Annotated[bool, typer.Option("--unit-atoms", help="Atoms of length 1, as SAEBench wants.")] = False,
    as_json: Json = False,
) -> None:
    """Write a trained dictionary as a folder that another library loads, with the same codes from raw activations.

    Example: lexray export runs/quickstart/sweep/trials/TRIAL/dictionary --to sae-lens runs/quickstart/exported
    """
    from lexray.cluster.dictionary_commands import run_export

    run_export(url, to, path, unit_atoms, messages, as_json)


@dictionary_app.command("import")
def import_(
    url: Annotated[str, typer.Argument(metavar="SAELENS_DIR", help="Folder with cfg.json and its weights.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder to write; it must not exist or be empty.")],
    as_json: Json = False,
) -> None:
    """Save a SAELens dictionary as one of lexray's, with the same codes and reconstructions.

    Example: lexray import downloads/blocks.8.hook_resid_pre runs/imported
    """
    from lexray.cluster.dictionary_commands import run_import

    run_import(url, path, messages, as_json)


@dictionary_app.command()
def diagnose(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY", help="Folder of a saved crosscoder: path or url.")],
    data: Annotated[str | None, typer.Option(help="Where its dataset lies now, if it was moved.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows to read at most.")] = 65_536,
    as_json: Json = False,
) -> None:
    """Say which latents of a crosscoder are shared by its sites, specific to one, or artefacts (latent scaling).

    Example: lexray diagnose runs/architectures/sweep/trials/TRIAL/dictionary
    """
    from lexray.cluster.diagnose_commands import run_diagnose

    run_diagnose(url, data, rows, messages, as_json)


@dictionary_app.command()
def measure(
    url: Annotated[str, typer.Argument(metavar="DICTIONARY", help="Folder of a saved dictionary: path or url.")],
    data: Annotated[str | None, typer.Option(help="Where its dataset lies now, if it was moved.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Held-out rows to read at most.")] = 65_536,
    every_atom: Annotated[bool, typer.Option("--every-atom", help="Compare all atoms, however many.")] = False,
    save: Annotated[bool, typer.Option("--save", help="Write measures.json beside the dictionary.")] = False,
    model: Annotated[str | None, typer.Option(help="Language model to put reconstructions into; with --texts.")] = None,
    texts: Annotated[str | None, typer.Option(help="Its texts: path or glob of files, .jsonl or .parquet.")] = None,
    site: Annotated[str | None, typer.Option(help="'NAME: {hidden_state: 3}' if the dataset does not tell.")] = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the texts to read at most.")] = 16_384,
    as_json: Json = False,
) -> None:
    """Measure a dictionary on held-out rows: firing, likeness, FVU against k, bits, coherence; and in its model.

    Example: lexray measure runs/quickstart/sweep/trials/TRIAL/dictionary
    """
    from lexray.cluster.measure_commands import MeasureOptions, run_measure

    options = MeasureOptions(
        data=data,
        max_rows=rows,
        every_atom=every_atom,
        save=save,
        model=model,
        texts=texts,
        sites=site,
        max_tokens=tokens,
    )
    run_measure(url, options, messages, as_json)


@bench_app.command("ground-truth")
def ground_truth(
    world: Annotated[list[str] | None, typer.Option(help="Only this world; may be given several times.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Dictionaries of each kind; 3, and 2 with --quick.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Two worlds, few dictionaries, half the steps.")] = False,
    output: Annotated[Path | None, typer.Option(help="Keep everything here, and continue from there.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that train; 0 is one for each core, at most 8.")] = 0,
    as_json: Json = False,
) -> None:
    """Train dictionaries on rows whose features are known, and say how much of them each found.

    Example: lexray bench ground-truth --world tree-0 --world tree-0.3
    """
    from lexray.cluster.bench_commands import run_ground_truth

    run_ground_truth(tuple(world or ()), seeds, quick, workers, output, messages, as_json)
