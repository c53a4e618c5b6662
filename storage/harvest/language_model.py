"""Locate, inspect and load a Hugging Face model and its tokenizer.

`transformers` is imported lazily: training a dictionary does not need it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest import tower as towers
from lexray.storage.harvest.tower import (
    NoTowerError,
    check_claims,
    check_folder,
    check_weights,
    find_tower,
    text_config_of,
)

_MODEL_FILES = {".json", ".txt", ".model", ".safetensors", ".bin"}
# Neither Python files nor pickled objects of a model folder are run.
_NO_FOREIGN_CODE = {"trust_remote_code": False, "weights_only": True}


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model that are known before its weights are loaded."""

    name: str
    """Name in the harvest file."""
    field: str
    """Field of the harvest file that names the model."""
    path: str
    """Argument of `from_pretrained`: a folder or a name."""
    num_layers: int
    """Number of layers of the tower that is read."""
    max_context: int | None
    """Maximum context length in tokens; None when unlimited."""
    fingerprint: str
    """Hash of the folder's files, or the commit of a model from the hub."""
    tower: str = ""
    """Path of the text (or vision) tower inside the model; empty for the whole model."""
    vocabulary: int | None = None
    """Rows of the token embedding: ids from this number on do not exist. None without one."""
    model_type: str = ""
    """Model type in Hugging Face's configurations: `gpt2`, `llama`, `bert`."""


def require_transformers() -> Any:
    """Import `transformers`. Raises UserError with how to install it."""
    needed = "harvesting needs the transformers package; pip install -e '.[harvest]'"
    with as_user_error(lambda _: needed, ImportError):
        import transformers
    return transformers


def inspect_model(name: str, *, field: str = "model", vision: bool = False) -> ModelFacts:
    """Read the model's configuration and build it without weights, to measure its text tower.

    `field` is the harvest file's, for errors; `vision` takes the vision tower of a model that has more than one. Raises
    UserError when there is no such model, it has no text tower, or it needs remote code.
    """
    transformers = require_transformers()
    path = _resolve(name, field)
    folder = Path(path)
    if folder.is_dir():
        check_folder(folder, field)
    with _loading(name, field):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    check_claims(config, f"{field}: {name!r}")
    fingerprint = _hash_folder(folder) if folder.is_dir() else str(getattr(config, "_commit_hash", None))
    if vision:
        tower_type = str(getattr(getattr(config, "vision_config", config), "model_type", ""))
        layers = _vision_layers(config, name, field)
        return ModelFacts(name, field, path, layers, None, fingerprint, model_type=tower_type)
    advice = "choose a language model or text encoder"
    refused = as_user_error(lambda error: f"{field}: {name!r} is {error}; {advice}", NoTowerError)
    with refused, _loading(name, field), torch.device("meta"):
        whole = _build(config)
        tower = find_tower(whole)
        place = next(place for place, module in whole.named_modules() if module is tower)
        layers, limit, rows = towers.count_layers(tower), towers.max_context(tower), towers.vocabulary(tower)
        kind = str(getattr(getattr(tower, "config", config), "model_type", ""))
    if folder.is_dir():
        check_weights(whole, folder, field)
    return ModelFacts(name, field, path, layers, limit, fingerprint, place, rows, kind)


def _vision_layers(config: Any, name: str, field: str) -> int:
    num_layers = getattr(getattr(config, "vision_config", config), "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        raise UserError(f"{field}: the configuration of {name!r} has no num_hidden_layers; choose a vision transformer")
    return num_layers


def _model_class(config: Any) -> Any:
    """Return the class that loads the model without its head: the auto class, or that of a separate text encoder."""
    transformers = require_transformers()
    if type(config) in transformers.MODEL_MAPPING:
        return transformers.AutoModel
    for name in config.architectures or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel


def _build(config: Any) -> Any:
    """Build the model of a configuration on torch's default device."""
    model_class = _model_class(config)
    if hasattr(model_class, "from_config"):
        return model_class.from_config(config, trust_remote_code=False)
    return model_class(config)


def load_tokenizer(facts: ModelFacts) -> Any:
    """Load the model's tokenizer. Raises UserError."""
    transformers = require_transformers()
    with _loading(facts.name, facts.field):
        return transformers.AutoTokenizer.from_pretrained(facts.path, trust_remote_code=False)


def load_image_processor(facts: ModelFacts) -> Any:
    """Load the image processor of the model. Raises UserError."""
    transformers = require_transformers()
    needed = "harvesting from images needs the pillow package; pip install -e '.[corpora]'"
    with as_user_error(lambda _: needed, ImportError):
        import PIL  # noqa: F401
    with _loading(facts.name, facts.field):
        return transformers.AutoImageProcessor.from_pretrained(facts.path, trust_remote_code=False)


def load_model(facts: ModelFacts, *, compute_dtype: str = "auto", attention: str = "auto", vision: bool = False) -> Any:
    """Load the tower that is read, without any head, in evaluation mode, on the CPU. Raises UserError."""
    transformers = require_transformers()
    chosen: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    with _loading(facts.name, facts.field):
        config = transformers.AutoConfig.from_pretrained(facts.path, trust_remote_code=False)
        if vision:
            config = getattr(config, "vision_config", config)
        model_class = transformers.AutoModel if vision else _model_class(config)
        whole, loaded = model_class.from_pretrained(
            facts.path, config=config, dtype=compute_dtype, output_loading_info=True, **_NO_FOREIGN_CODE, **chosen
        )
    model = whole.get_submodule(facts.tower)
    missing = _missing(whole, model, loaded["missing_keys"])
    if missing:
        raise UserError(f"{facts.field}: {facts.name!r} has no weights for {missing[0]} ({len(missing)} missing)")
    if vision and model.main_input_name != "pixel_values":
        raise UserError(f"images: {facts.name!r} takes no images but {model.main_input_name}; choose a vision model")
    model.config.use_cache = False
    return model.eval()


def _missing(whole: Any, tower: Any, keys: Iterable[str]) -> list[str]:
    """Return the missing keys that the tower computes with, by their names in the whole model.

    A pooler is often absent and does not affect hidden states, and sinusoids are computed; any other missing tensor
    would be random.
    """
    tensors = whole.state_dict(keep_vars=True)
    ours = {
        id(tensor)
        for module in tower.modules()
        if "Sinusoidal" not in type(module).__name__
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False))
    }
    return sorted(key for key in keys if "pooler" not in key and (key not in tensors or id(tensors[key]) in ours))


def load_causal_model(facts: ModelFacts) -> Any:
    """Load the model with its language modelling head, in evaluation mode, on the CPU. Raises UserError."""
    transformers = require_transformers()
    with _loading(facts.name, facts.field):
        config = transformers.AutoConfig.from_pretrained(facts.path, trust_remote_code=False)
    if getattr(text_config_of(config), "is_encoder_decoder", False):
        raise UserError(f"{facts.field}: {facts.name!r} is an encoder-decoder; give a causal language model")
    inside = type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    auto = transformers.AutoModelForImageTextToText if inside else transformers.AutoModelForCausalLM
    with _loading(facts.name, facts.field):
        model, loaded = auto.from_pretrained(facts.path, dtype="auto", output_loading_info=True, **_NO_FOREIGN_CODE)
    if loaded["missing_keys"]:
        missing = min(loaded["missing_keys"])
        raise UserError(f"{facts.field}: {facts.name!r} has no weights for {missing}; it is no whole language model")
    return model.eval()


def special_token_ids(tokenizer: Any) -> list[int]:
    """Return the ids of tokens without text: those with a role, and added ones marked special, such as chat markers.

    The unknown token represents text, unless it has another role too.
    """
    ids = set(tokenizer.all_special_ids)
    ids |= {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = [getattr(tokenizer, f"{role}_token_id", None) for role in ("bos", "eos", "sep", "cls", "pad", "mask")]
    if tokenizer.unk_token_id not in roles:
        ids.discard(tokenizer.unk_token_id)
    return sorted(ids)


def _resolve(name: str, field: str) -> str:
    """Return the argument of `from_pretrained` for the `model` of a harvest file."""
    if name.startswith("package:"):
        return _resolve_package(name, field)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{field}: no folder {name!r}")
    return name


def _resolve_package(name: str, field: str) -> str:
    package, _, subfolder = name.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"{field}: no Python package {package!r} is installed; pip install it or fix {name!r}")
    for root in spec.submodule_search_locations:
        folder = Path(root, subfolder)
        if folder.is_dir():
            return str(folder)
    raise UserError(f"{field}: the Python package {package!r} has no folder {subfolder!r}")


def _hash_folder(folder: Path) -> str:
    """Return the xxh3-128 hash of the names and bytes of the files that determine a model's computation."""
    digest = xxhash.xxh3_128()
    for path in sorted(p for p in folder.iterdir() if p.suffix in _MODEL_FILES and p.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return str(digest.hexdigest())


@contextmanager
def _loading(name: str, field: str) -> Iterator[None]:
    """Silence loading; exceptions that transformers raises for a model folder become one-line user errors."""
    from transformers.utils import logging

    verbosity, bar_was_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    # A download may take minutes and shows progress; reading a folder does not.
    if name.startswith("package:") or Path(name).expanduser().is_dir():
        logging.disable_progress_bar()
    try:
        yield
    except (NoTowerError, UserError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{field}: {name!r} needs code of its own (auto_map), which is not run; "
                "choose a model that transformers has a class for"
            ) from error
        raise UserError(f"{field}: cannot load {name!r} ({one_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar_was_on:
            logging.enable_progress_bar()
