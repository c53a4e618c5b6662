"""Check a model before transformers reads it: the code that it would run and the memory that it claims."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lexray.storage.errors import UserError
from lexray.storage.harvest.tower import MAX_LAYERS

MAX_EXPERTS = 10_000
PARAMETERS_PER_BYTE = 10
"""Maximum plausible parameters per byte of weights: 4-bit weights have 2, with half of them absent 4."""
_COUNTS = re.compile(r"(layers?|blocks|depths?|experts)$")
_IMPLEMENTATION = re.compile(r"(attn|experts)_implementation(_internal)?$")
_WEIGHTS = (".safetensors", ".bin")


def check_folder(folder: Path, field: str) -> None:
    """Raise UserError for an adapter without its model, or a configuration that requests remote kernels."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{field}: {str(folder)!r} holds an adapter (adapter_config.json) of another model; "
            "merge it into that model and give the folder of the result"
        )
    config = _read_config(folder / "config.json")
    for path, value in _walk(config):
        if _IMPLEMENTATION.search(path) and isinstance(value, str) and "/" in value:
            raise UserError(
                f"{field}: {folder / 'config.json'}: {path}: {value!r} is code from the hub, which is not run; "
                "remove the line"
            )


def check_claims(config: Any, who: str) -> None:
    """Raise UserError for a configuration with implausibly many layers or experts, which would fill the memory."""
    for path, value in _walk(config.to_dict()):
        limit = MAX_EXPERTS if path.endswith("experts") else MAX_LAYERS
        if _COUNTS.search(path) and isinstance(value, int) and value > limit:
            raise UserError(f"{who}: its configuration says {path}: {value:,}, more than the {limit:,} that are read")


def check_weights(model: Any, folder: Path, field: str) -> None:
    """Raise UserError when a model has far more parameters than its folder has bytes for.

    transformers initialises missing tensors at random, and would fill the memory before it reports them.
    """
    held = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file())
    claimed = sum(parameter.numel() for parameter in model.parameters())
    if held and claimed > PARAMETERS_PER_BYTE * held:
        raise UserError(
            f"{field}: {str(folder)!r}: config.json describes {claimed:,} parameters, but the files of weights hold "
            f"{held:,} bytes; they do not belong together"
        )


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # transformers reports the error


def _walk(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value below a JSON document with its path."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            path = f"{prefix}.{name}" if prefix else str(name)
            yield path, value
            yield from _walk(value, path)
