"""Descriptions of the architectures for the command line, the documentation and the sweep file's schema.

All are derived from the classes: equations from the class docstring, options from the docstring under each field.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lexray.storage.file_settings import field_docs
from lexray.training.codes.base import CodeConfig
from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.architecture import Architecture
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
    """Default value; also None where `required`."""
    required: bool
    doc: str
    codes: tuple[str, ...] = ()
    """Codes that have the option, where the architecture has a choice of codes; empty where all have it."""


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
        """Return plain values."""
        return asdict(self)


def describe_all() -> list[Description]:
    """Return the descriptions of all architectures, in the order of the table."""
    return [describe(name) for name in ARCHITECTURES]


def describe(name: str) -> Description:
    """Return the description of the architecture `name`."""
    made = ARCHITECTURES[name]
    docstring = inspect.cleandoc(made.described_by.__doc__ or "")
    summary, _, equations = docstring.partition("\n\n")
    return Description(
        name=name,
        paper=made.paper,
        summary=" ".join(summary.split()),
        equations=equations.strip("\n"),
        reads=READS[made.kind],
        learns_by=made.Config.learns_by,
        options=options_of(made),
    )


def options_of(made: Architecture) -> tuple[Option, ...]:
    """Return the options of an architecture: the code's, the choice of a code, the dictionary's."""
    found: dict[str, Option] = {}
    for code in made.codes:
        for option in fields_of(code.Config):
            known = found.get(option.name)
            if option.name != "kind":
                found[option.name] = replace(known or option, codes=(*(known.codes if known else ()), code.kind))
    choice: tuple[Option, ...] = ()
    if len(made.codes) > 1:
        doc = f"How latents become active: {', '.join(made.kinds)}."
        choice = (Option(name="code", type="str", default=made.kinds[0], required=False, doc=doc),)
    of_codes = [replace(o, codes=() if len(o.codes) == len(made.codes) else o.codes) for o in found.values()]
    own = [option for option in fields_of(made.Config) if option.name not in ("architecture", "code")]
    return (*own, *choice, *of_codes)


def fields_of(config_class: type[DictionaryConfig] | type[CodeConfig]) -> tuple[Option, ...]:
    """Return the fields of a configuration class."""
    docs, types = field_docs(config_class), get_type_hints(config_class)
    return tuple(
        Option(
            name=field.name,
            type=_name(types[field.name]),
            default=None if field.default is MISSING else field.default,
            required=field.default is MISSING,
            doc=docs[field.name],
        )
        for field in fields(config_class)
    )


def _name(kind: Any) -> str:
    """Return a type as code spells it, without the modules of the names."""
    if get_origin(kind) in (Union, UnionType):
        return " | ".join(_name(part) for part in get_args(kind))
    if kind is type(None):
        return "None"
    return kind.__name__ if type(kind) is type else re.sub(r"\b(\w+\.)+", "", str(kind))
