"""What the table of architectures says of itself: for the command line, the documentation and the sweep file's schema.

Everything is read off the classes: the docstring is the equations, the docstring under a field explains the option.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import MISSING, asdict, dataclass, fields
from textwrap import dedent
from typing import Any

from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.base import DictionaryConfig

READS = {
    "sae": "one site, which it reconstructs",
    "transcoder": "one site, and reconstructs another",
    "crosscoder": "several sites, which it reconstructs",
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """One field of an architecture's configuration."""

    name: str
    type: str
    default: Any
    """None, too, where there is no default: `required` tells."""
    required: bool
    doc: str


@dataclass(frozen=True, kw_only=True)
class Description:
    """One architecture."""

    name: str
    paper: str
    summary: str
    equations: str
    reads: str
    learns_by: str
    options: tuple[Option, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def describe_all() -> list[Description]:
    """Every architecture, in the order of the table."""
    return [describe(name) for name in ARCHITECTURES]


def describe(name: str) -> Description:
    """The architecture called `name`."""
    made = ARCHITECTURES[name]
    docstring = inspect.cleandoc(made.__doc__ or "")
    summary, _, equations = docstring.partition("\n\n")
    return Description(
        name=name,
        paper=made.paper,
        summary=" ".join(summary.split()),
        equations=equations.strip("\n"),
        reads=READS[made.kind],
        learns_by=made.learns_by,
        options=options_of(made.Config),
    )


def options_of(config_class: type[DictionaryConfig]) -> tuple[Option, ...]:
    """The options of a configuration class, its own before those that all architectures have."""
    docs = _field_docs(config_class)
    return tuple(
        Option(
            name=field.name,
            type=str(field.type),
            default=None if field.default is MISSING else field.default,
            required=field.default is MISSING,
            doc=docs[field.name],
        )
        for field in fields(config_class)
    )


def _field_docs(config_class: type) -> dict[str, str]:
    """The docstring under each field, the nearest class's own first."""
    docs: dict[str, str] = {}
    for made in reversed(config_class.__mro__[:-1]):
        body = ast.parse(dedent(inspect.getsource(made))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
                continue
            if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs
