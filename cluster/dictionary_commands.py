"""What the commands on one trained dictionary do; `cli` says how they are called."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from lexray.cluster.commands import print_json


def run_export(url: str, to: str, path: str, unit_atoms: bool, messages: Console, as_json: bool) -> None:
    """`lexray export`: the folder's url and what it is called there on stdout, notes on stderr."""
    from lexray.training.export import export_dictionary

    exported = export_dictionary(url, to, path, unit_atoms=unit_atoms)
    _report(exported, f"{exported.url}: {exported.architecture} for {exported.format}", messages, as_json)


def run_import(url: str, path: str, messages: Console, as_json: bool) -> None:
    """`lexray import`: the saved dictionary's url and architecture on stdout, notes on stderr."""
    from lexray.training.export.import_sae_lens import import_sae_lens

    imported = import_sae_lens(url, path)
    line = f"{imported.url}: {imported.architecture} of {imported.width:,} latents"
    _report(imported, line, messages, as_json)


def _report(result: object, line: str, messages: Console, as_json: bool) -> None:
    content = asdict(result)  # type: ignore[call-overload]
    if as_json:
        print_json(content)
        return
    print(line)
    for note in content["notes"]:
        messages.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
