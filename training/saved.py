"""A trained dictionary on disk: `config.json` and `dictionary.safetensors`; loading needs torch alone.

The tensors are those of the module with constraints folded in (atoms of unit norm, archetypal atoms instead of what
they are made of), input normalisation and inference threshold included: a loaded dictionary takes raw activations.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lexray.storage.errors import CorruptDataError, UserError
from lexray.storage.store import StorageSettings, Store, reachable
from lexray.training.checkpoints import open_checkpoint, step_of
from lexray.training.dictionaries import architecture, dictionary_config, make_dictionary
from lexray.training.dictionaries.base import Dictionary
from lexray.training.json_values import with_nulls
from lexray.training.normalisers import Sites

CONFIG, TENSORS = "config.json", "dictionary.safetensors"
FORMAT, FORMAT_VERSION = "lexray-dictionary", 2


def save_dictionary(
    store: Store, dictionary: Dictionary, tensors: dict[str, Tensor] | None = None, about: dict[str, Any] | None = None
) -> None:
    """Write a dictionary: its own state, or full tensors by name where it is sharded.

    `about` says where it came from: sites, data, trial.
    """
    tensors = dictionary.tensors_to_save(tensors if tensors is not None else dictionary.state_dict())
    content = {"format": FORMAT, "version": FORMAT_VERSION, **describe_dictionary(dictionary), **(about or {})}
    store.write(TENSORS, save({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}))
    store.write(CONFIG, json.dumps(with_nulls(content), indent=1).encode())  # last: a folder with a config is complete


def load_dictionary(url: str, settings: StorageSettings | None = None) -> Dictionary:
    """The dictionary in a folder (path or url), in evaluation mode, on the CPU, in float32.

    The folder may be that of a checkpoint: then it is the dictionary as it was at that step. Raises UserError when
    there is none or its files do not belong together.
    """
    store = Store.at(url, settings)
    if step_of(store.url.rsplit("/", 1)[-1]) is not None:
        return _of_checkpoint(store)
    content = read_dictionary_config(store)
    try:
        dictionary = _described(content)
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"dictionary {store.url}: {CONFIG} does not describe a dictionary ({error})") from error
    try:
        dictionary.load_tensors(load(store.read(TENSORS)))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"dictionary {store.url}: {TENSORS} is missing or damaged ({reason})") from error
    return dictionary.eval().requires_grad_(False)


def describe_dictionary(dictionary: Dictionary) -> dict[str, Any]:
    """What must be known to make a dictionary that tensors are loaded into: plain values."""
    return {"dictionary": dictionary.config.to_dict(), "site_widths": dictionary.sites.widths()}


def _described(content: dict[str, Any]) -> Dictionary:
    config = dictionary_config(content["dictionary"])
    same = architecture(config.architecture).kind != "transcoder"
    return make_dictionary(config, Sites.of_widths(content["site_widths"], reconstructs_its_input=same))


def _of_checkpoint(store: Store) -> Dictionary:
    parent, _, folder = store.url.rpartition("/")
    try:
        stored = open_checkpoint(Store(parent, store.settings), folder)
        dictionary, tensors = _described(stored.manifest.about), stored.read().weights
    except CorruptDataError as error:
        raise UserError(f"dictionary {store.url}: the checkpoint is damaged ({error})") from error
    dictionary.load_tensors(dictionary.tensors_to_save(tensors))
    return dictionary.eval().requires_grad_(False)


def read_dictionary_config(store: Store) -> dict[str, Any]:
    """`config.json` of a saved dictionary: `dictionary` (its options), `sites`, `data`, `trial`, `held_out`."""
    try:
        with reachable("dictionary", store.url):
            written = store.read(CONFIG)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"dictionary {store.url}: no {CONFIG} there") from error
    try:
        content: dict[str, Any] = json.loads(written)
    except ValueError as error:
        raise UserError(f"dictionary {store.url}: {CONFIG} is not valid JSON") from error
    if not isinstance(content, dict):
        raise UserError(f"dictionary {store.url}: {CONFIG} holds no settings")
    if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"dictionary {store.url}: {CONFIG} has format {content.get('format')} version {content.get('version')}, "
            f"this lexray reads {FORMAT} version {FORMAT_VERSION}"
        )
    return content


def to_state_dict(parameters: dict[str, Tensor], dictionary: Dictionary) -> dict[str, Tensor]:
    """Full parameters by name together with the module's buffers."""
    return {**parameters, **{name: buffer.detach().clone() for name, buffer in dictionary.named_buffers()}}
