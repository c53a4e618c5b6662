"""Every architecture, in one table. One file each; the docstring of the class is its equations and its paper."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from storage.config_file import checked_config, nearest
from storage.errors import UserError
from training.dictionaries.base import Dictionary, DictionaryConfig
from training.dictionaries.batch_topk import BatchTopK
from training.dictionaries.relu import ReLU
from training.dictionaries.topk import TopK

ARCHITECTURES: dict[str, type[Dictionary]] = {
    "relu": ReLU,
    "topk": TopK,
    "batch_topk": BatchTopK,
}


def architecture(name: str) -> type[Dictionary]:
    """The class of an architecture. Raises UserError with the nearest known name."""
    if not isinstance(name, str):
        raise UserError(f"architecture: {name!r} is not a name; known: {', '.join(sorted(ARCHITECTURES))}")
    if name not in ARCHITECTURES:
        raise UserError(f"architecture: unknown {name!r}{nearest(name, list(ARCHITECTURES))}")
    return ARCHITECTURES[name]


def dictionary_config(options: dict[str, Any]) -> DictionaryConfig:
    """A checked configuration from plain values with an `architecture` among them."""
    options = dict(options)
    config_class = architecture(options.pop("architecture")).Config
    known = [f.name for f in fields(config_class)]
    for name in options:
        if name not in known:
            raise UserError(f"{name}: unknown option of {config_class.architecture}{nearest(name, known)}")
    return checked_config(config_class, options)
