"""The part of a model that reads the text: the model itself, or a language model or text encoder inside a larger one.

Before transformers reads a model, the code that it would run and the memory that it claims are checked.

Everything here is measured on the modules rather than listed by name. It holds for a model without weights (on
torch's `meta` device), so a harvest file is checked before anything is loaded.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from lexray.storage.errors import UserError

MAX_LAYERS = 1000
"""A configuration that claims more layers is refused: building them takes minutes, and no published model has them."""
MAX_EXPERTS = 10_000
PARAMETERS_PER_BYTE = 10
"""Maximum plausible parameters per byte of weights: 4-bit weights have 2, with half of them absent 4."""
_COUNTS = re.compile(r"(layers?|blocks|depths?|experts)$")
_IMPLEMENTATION = re.compile(r"(attn|experts)_implementation(_internal)?$")
_WEIGHTS = (".safetensors", ".bin")
_LAYER_COUNTS = ("encoder_layers", "num_encoder_layers", "num_hidden_layers", "num_layers", "n_layers", "n_layer")


class NoTowerError(ValueError):
    """The model has no part that reads text; the message says why."""


def find_tower(model: Any) -> Any:
    """Return the module that reads the text. Raises NoTowerError naming what the model reads instead."""
    tower = _inner_model(model)
    if _is_encoder_decoder(tower):
        whole, tower = tower, tower.get_encoder()
        if not hasattr(tower, "config"):  # FSMT
            tower.config = whole.config
    if not reads(tower, "input_ids"):
        read = getattr(tower, "main_input_name", None)
        read = read if isinstance(read, str) and reads(tower, read) else "other inputs"
        raise NoTowerError(f"a model of type {tower.config.model_type!r} that reads {read}, not token ids of a text")
    return tower


def _is_encoder_decoder(model: Any) -> bool:
    """Whether a model has two halves; the configuration of T5's encoder stored alone does not say so."""
    halves = [getattr(model, name, None) for name in ("encoder", "decoder")]
    split = all(isinstance(half, nn.Module) and reads(half, "input_ids") for half in halves)
    return split or bool(getattr(model.config, "is_encoder_decoder", False))


def reads(module: nn.Module, name: str) -> bool:
    """Whether the forward pass of a module takes an argument of this name."""
    return name in inspect.signature(module.forward).parameters


def _inner_model(model: Any) -> Any:
    """The first module inside that was built from the text part of the model's configuration, else the model."""
    if getattr(model.config, "is_encoder_decoder", False):
        text_config = getattr(model.config, "text_config", None)
    else:
        text_config = text_config_of(model.config)
    if text_config is None or type(text_config) is type(model.config):
        return model
    for module in model.modules():
        if module is not model and type(getattr(module, "config", None)) is type(text_config):
            inner = getattr(module, "base_model", module)
            if getattr(inner.config, "is_encoder_decoder", False) or reads(inner, "input_ids"):
                return inner
    return model


def text_config_of(config: Any) -> Any:
    """The part of a configuration that describes the text model; the configuration itself when it has no parts."""
    try:
        return config.get_text_config()
    except ValueError:  # transformers finds several parts that read text
        return getattr(config, "text_config", config)


def count_layers(tower: Any) -> int:
    """Layers of the tower: the number in its configuration for which there is a list of modules, else the first.

    Raises NoTowerError without any.
    """
    config = text_config_of(tower.config)
    claims = [getattr(config, name, None) for name in _LAYER_COUNTS]
    counts = [count for count in claims if isinstance(count, int) and count > 0]
    lengths = [len(module) for module in tower.modules() if isinstance(module, nn.ModuleList)]
    for count in counts:
        if count in lengths:
            return count
    if counts:
        return counts[0]
    raise NoTowerError(f"a model of type {tower.config.model_type!r}, whose configuration counts no layers")


def max_context(tower: Any) -> int | None:
    """Most tokens that the tower has positions for: what its configuration says, or fewer if its tables hold fewer.

    None without a limit.

    A table of learned or sinusoidal positions loses the rows before its first position: `offset` of them (OPT, BART),
    or those up to its `padding_idx` (RoBERTa, MPNet, ESM).
    """
    limits = [_usable_rows(table) for table in _position_tables(tower, type(tower.config))]
    said = getattr(text_config_of(tower.config), "max_position_embeddings", None)
    if isinstance(said, int) and said > 0:  # XLNet says -1 for no limit
        limits.append(said)
    return min(limits, default=None)


def _position_tables(module: nn.Module, config_type: type) -> Iterator[nn.Module]:
    """Tables of absolute positions below a module, without those of towers inside it that read images."""
    for name, child in module.named_children():
        if isinstance(getattr(child, "config", None), config_type | None):
            is_table = hasattr(child, "padding_idx") and hasattr(child, "weight")
            if is_table and (name == "wpe" or name.startswith(("pos", "embed_pos", "char_pos"))):
                yield child
            yield from _position_tables(child, config_type)


def _usable_rows(table: Any) -> int:
    rows, padding = table.weight.shape[0], getattr(table, "padding_idx", None)
    skipped = getattr(table, "offset", None)
    if not isinstance(skipped, int):
        skipped = 0 if padding is None else padding + 1
    return int(rows) - skipped


def vocabulary(tower: Any) -> int | None:
    """Rows of the tower's token embedding; ids from this number on do not exist. None when it has no such table."""
    try:
        table = tower.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        table = getattr(tower, "embed_tokens", None)
    # Only a table of embeddings has a `padding_idx`, be it None; other modules are given ids of other kinds.
    return int(table.weight.shape[0]) if hasattr(table, "padding_idx") else None


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
