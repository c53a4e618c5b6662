"""`lexray architectures` and `lexray schema`: what can be trained, and what a sweep file may hold."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lexray.cluster.consoles import TextConsole, plain_table
from lexray.cluster.options import Json
from lexray.cluster.output import print_json
from lexray.storage.errors import UserError

architectures_app = typer.Typer()


@architectures_app.command()
def architectures(
    name: Annotated[str | None, typer.Argument(help="Show one of them whole.")] = None,
    as_json: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of documentation.")] = False,
) -> None:
    """List what can be trained: papers, equations, options.

    Example: lexray architectures jumprelu
    """
    from lexray.training.dictionaries import architecture
    from lexray.training.dictionaries.describe import describe, describe_all
    from lexray.training.dictionaries.document import architectures_page

    if markdown:
        if name is not None:
            raise UserError("--markdown prints the whole table; leave the name out")
        sys.stdout.write(architectures_page())
        return
    if name is not None:
        architecture(name)
    found = describe_all() if name is None else [describe(name)]
    if as_json:
        print_json([description.to_dict() for description in found])
        return
    out = TextConsole()
    if name is None:
        out.print(_overview(found))
        out.print("`lexray architectures NAME` shows equations and options.")
    else:
        _print_one(out, found[0])


@architectures_app.command()
def schema() -> None:
    """Print the JSON schema of a sweep file, for editors.

    Example: lexray schema > sweep.schema.json
    """
    from lexray.tuning.file.schema import sweep_schema

    print_json(sweep_schema())


def _overview(found: list[Any]) -> Table:
    return plain_table(("architecture", "what it is", "paper"), ((one.name, one.summary, one.paper) for one in found))


def _print_one(out: Console, description: Any) -> None:
    out.print(Text.assemble((description.name, "bold"), f": {description.summary}\n{description.paper}"))
    out.print(f"reads {description.reads}; learns by {description.learns_by}\n")
    out.print(description.equations + "\n", soft_wrap=True)  # a broken line would be another equation
    options = ((one.name, "required" if one.required else repr(one.default), one.doc) for one in description.options)
    out.print(plain_table(("option", "default", ""), options))
