"""`lexray export` and `lexray import`: dictionaries of other libraries' formats."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lexray.cluster.consoles import say
from lexray.cluster.options import Json, messages
from lexray.cluster.output import print_json

export_app = typer.Typer()


@export_app.command("export")
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
    from lexray.training.export import export_dictionary

    exported = export_dictionary(url, to, path, unit_atoms=unit_atoms)
    _report(exported, f"{exported.url}: {exported.architecture} for {exported.format}", as_json)


@export_app.command("import")
def import_(
    url: Annotated[str, typer.Argument(metavar="SAELENS_DIR", help="Folder with cfg.json and its weights.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="Folder to write; it must not exist or be empty.")],
    as_json: Json = False,
) -> None:
    """Save a SAELens dictionary as one of lexray's, with the same codes and reconstructions.

    Example: lexray import downloads/blocks.8.hook_resid_pre runs/imported
    """
    from lexray.training.export.import_sae_lens import import_sae_lens

    imported = import_sae_lens(url, path)
    line = f"{imported.url}: {imported.architecture} of {imported.width:,} latents"
    _report(imported, line, as_json)


def _report(result: object, line: str, as_json: bool) -> None:
    content = asdict(result)  # type: ignore[call-overload]
    if as_json:
        print_json(content)
        return
    print(line)
    for note in content["notes"]:
        say(messages, f"note: {note}")
