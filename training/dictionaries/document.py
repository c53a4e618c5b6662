"""The table of architectures as a page of documentation."""

from __future__ import annotations

import json
from typing import Any

from lexray.training.dictionaries.base import DictionaryConfig
from lexray.training.dictionaries.describe import Description, Option, describe_all, fields_of
from lexray.training.dictionaries.learned import LearnedConfig

HEAD = """# Architectures

Written by `lexray architectures --markdown` from the classes in `training/dictionaries/`; do not edit by hand.

`x` is the normalised input (`normaliser`), `y` a transcoder's normalised target, `atoms` the rows of `W_dec`, `f` the
code. Sparsity is always `target_l0`: families with a `k` meet it by construction, for the others a controller moves
the penalty. Options stand in a sweep file under `options: {ARCHITECTURE: {OPTION: VALUE}}`, or as an axis.
"""


def architectures_page() -> str:
    """Markdown: what all have in common, then one section for each architecture."""
    shared = [option for option in fields_of(DictionaryConfig) if option.name != "architecture"]
    learned = [o for o in fields_of(LearnedConfig) if o.name not in ("architecture", "code") and o not in shared]
    parts = [HEAD, "## Options of every architecture\n", _table(shared)]
    parts += ["## Options of every architecture that learns by gradient\n", _table(learned)]
    known = {*shared, *learned}
    for description in describe_all():
        own = [option for option in description.options if option not in known]
        parts.append(_section(description, own))
    return "\n".join(parts)


def _section(description: Description, options: list[Option]) -> str:
    lines = [
        f"## {description.name}\n",
        f"{description.summary} {description.paper}. Reads {description.reads}; learns by {description.learns_by}.\n",
        f"{description.equations}\n",  # its indented lines are code in Markdown already
    ]
    return "\n".join([*lines, _table(options)]) if options else "\n".join(lines)


def _table(options: list[Option] | tuple[Option, ...]) -> str:
    rows = [f"| `{o.name}` | {_default(o)} | {_doc(o)} |" for o in options]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows, ""])


def _doc(option: Option) -> str:
    only = f"With code {' or '.join(option.codes)}: " if option.codes else ""
    return f"{only}{option.doc}".replace("|", chr(92) + "|")


def _default(option: Option) -> str:
    return "required" if option.required else f"`{json.dumps(_plain(option.default))}`"


def _plain(value: Any) -> Any:
    return [round(v, 6) for v in value] if isinstance(value, tuple) else value
