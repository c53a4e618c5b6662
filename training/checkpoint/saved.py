"""A trained dictionary on disk: `config.json` and `dictionary.safetensors`; loading needs torch alone.

The tensors are those of the module with constraints folded in (atoms of unit norm, archetypal atoms instead of what
they are made of), input normalisation and inference threshold included: a loaded dictionary takes raw activations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from lexray.storage.errors import CorruptDataError, UserError, last_line, one_line
from lexray.storage.json_values import with_nulls
from lexray.storage.store import StorageSettings, Store, reachable
from lexray.training.checkpoint.foreign_json import read_object
from lexray.training.checkpoint.format import open_checkpoint, step_of
from lexray.training.checkpoint.tensor_file import Shape, TensorFileError, check_shapes, read_header
from lexray.training.dictionaries import architecture, make_dictionary, recorded_config
from lexray.training.dictionaries.base import Dictionary
from lexray.training.dictionaries.normalisers import Sites

CONFIG, TENSORS = "config.json", "dictionary.safetensors"
FORMAT, FORMAT_VERSION = "lexray-dictionary", 2


def save_dictionary(
    store: Store, dictionary: Dictionary, tensors: dict[str, Tensor] | None = None, about: dict[str, Any] | None = None
) -> None:
    """Write a dictionary: its own state, or full tensors by name where it is sharded.

    `about` is its provenance: sites, data, trial.
    """
    tensors = dictionary.tensors_to_save(tensors if tensors is not None else dictionary.state_dict())
    content = {"format": FORMAT, "version": FORMAT_VERSION, **describe_dictionary(dictionary), **(about or {})}
    store.write(TENSORS, save({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}))
    store.write(CONFIG, json.dumps(with_nulls(content), indent=1).encode())  # last: a folder with a config is complete


def load_dictionary(url: str, settings: StorageSettings | None = None) -> Dictionary:
    """Load the dictionary in a folder (path or url), in evaluation mode, on the CPU, in float32.

    The folder may be that of a checkpoint: then it is the dictionary as it was at that step. Names and shapes of the
    tensors are compared with what the configuration implies before anything of that size is allocated. Raises UserError
    when there is none, its files do not belong together, or a value is not finite.
    """
    store = Store.at(url, settings)
    if step_of(store.url.rsplit("/", 1)[-1]) is not None:
        return _of_checkpoint(store)
    content = read_dictionary_config(store)
    try:
        with reachable("dictionary", store.url):
            header = read_header(store, TENSORS)
            shapes = {name: tensor.shape for name, tensor in header.items()}
            dictionary = _blank(content, shapes, f"dictionary {store.url}: {CONFIG}")
            dictionary.become_saved_form()
            check_shapes(shapes, shapes_of(dictionary), by=CONFIG)
            return _filled(dictionary, load(store.read(TENSORS)))
    except (FileNotFoundError, NotADirectoryError, SafetensorError, TensorFileError, RuntimeError) as error:
        reason = last_line(str(error))
        raise UserError(f"dictionary {store.url}: {TENSORS} is missing or damaged ({reason})") from error


def describe_dictionary(dictionary: Dictionary) -> dict[str, Any]:
    """Return the plain values from which a dictionary is built before its tensors are loaded."""
    return {"dictionary": dictionary.config.to_dict(), "site_widths": dictionary.sites.widths()}


def shapes_of(dictionary: Dictionary) -> dict[str, Shape]:
    """Return the shapes of the parameters and buffers by name."""
    return {name: tuple(tensor.shape) for name, tensor in dictionary.state_dict().items()}


def _of_checkpoint(store: Store) -> Dictionary:
    parent, _, folder = store.url.rpartition("/")
    try:
        with reachable("dictionary", store.url):
            stored = open_checkpoint(Store(parent, store.settings), folder)
            dictionary = _blank(
                stored.manifest.about, shapes := stored.shapes(), f"dictionary {store.url}: its manifest"
            )
            check_shapes(shapes, shapes_of(dictionary), by="its manifest")
            tensors = dictionary.tensors_to_save(stored.read_weights())
            dictionary.become_saved_form()
            return _filled(dictionary, tensors)
    except (CorruptDataError, TensorFileError, RuntimeError) as error:
        reason = last_line(str(error))
        raise UserError(f"dictionary {store.url}: the checkpoint is damaged ({reason})") from error


def _blank(content: dict[str, Any], shapes: Mapping[str, Shape], what: str) -> Dictionary:
    """The dictionary that a configuration describes, without memory for its tensors.

    Its widths are compared first with vectors that every dictionary has: even without tensors, making one takes memory
    by its widths. Raises UserError for a configuration that is none, TensorFileError for other widths.
    """
    try:
        config, widths = recorded_config(content["dictionary"]), checked_widths(content["site_widths"])
        same = architecture(config.architecture).kind != "transcoder"
        if same and widths["inputs"] != widths["outputs"]:
            raise ValueError(f"site_widths: {config.architecture} reconstructs what it reads, but the widths differ")
        wanted = {"rows_since_fired_F": (config.width,), "input.mean_D": (sum(widths["inputs"]),)}
        wanted |= {} if same else {"target.mean_D": (sum(widths["outputs"]),)}
        check_shapes({name: shapes[name] for name in wanted if name in shapes}, wanted, by="its configuration")
        with torch.device("meta"):
            return make_dictionary(config, Sites.of_widths(widths, reconstructs_its_input=same))
    except TensorFileError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = one_line(error)[:200]
        raise UserError(f"{what} does not describe a dictionary ({reason})") from error


def checked_widths(content: Any) -> dict[str, list[int]]:
    """Return the widths of the input and output sites. Raises ValueError for anything else."""
    match content:
        case {"inputs": [_, *_] as inputs, "outputs": [_, *_] as outputs}:
            if all(type(width) is int and width > 0 for width in (*inputs, *outputs)):
                return {"inputs": inputs, "outputs": outputs}
    raise ValueError("site_widths: expected `inputs` and `outputs`, lists of whole numbers above 0")


def _filled(dictionary: Dictionary, tensors: Mapping[str, Tensor]) -> Dictionary:
    """The dictionary with these tensors, in the dtypes that it computes in. Raises TensorFileError for NaN."""
    wanted = dictionary.state_dict()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != wanted[name].is_floating_point():
            raise TensorFileError(f"{name} holds {tensor.dtype}, needed is {wanted[name].dtype}")
        check_finite(name, tensor)
    cast = {name: tensor.detach().to(wanted[name].dtype) for name, tensor in tensors.items()}
    dictionary.load_state_dict(cast, assign=True)
    return dictionary.eval().requires_grad_(False)


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise TensorFileError where a tensor holds NaN or infinities: codes of such a dictionary would mean nothing.

    A threshold of zero has the logarithm minus infinity.
    """
    if not tensor.is_floating_point():
        return
    wrong = tensor.isnan() | tensor.isposinf() if name == "scaled_log_threshold" else ~tensor.isfinite()
    if count := int(wrong.sum()):
        raise TensorFileError(f"{name} holds {count:,} of {tensor.numel():,} values that are not finite")


def read_dictionary_config(store: Store) -> dict[str, Any]:
    """Read `config.json` of a saved dictionary: `dictionary` (its options), `sites`, `data`, `trial`, `held_out`."""
    what = f"dictionary {store.url}"
    try:
        with reachable("dictionary", store.url):
            content = read_object(store, CONFIG, what)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{what}: no {CONFIG} there") from error
    if content.get("format") != FORMAT or content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{what}: {CONFIG} has format {_shown(content, 'format')} version {_shown(content, 'version')}, "
            f"this lexray reads {FORMAT} version {FORMAT_VERSION}"
        )
    return content


def _shown(content: dict[str, Any], name: str) -> str:
    return repr(content.get(name))[:40]


def to_state_dict(parameters: dict[str, Tensor], dictionary: Dictionary) -> dict[str, Tensor]:
    """Return the full parameters by name together with the module's buffers."""
    return {**parameters, **{name: buffer.detach().clone() for name, buffer in dictionary.named_buffers()}}
