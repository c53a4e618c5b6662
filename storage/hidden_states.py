"""Hidden states of a Hugging Face model: find it, load it, and run no layer beyond the deepest one asked for.

`hidden_states[i]` of a transformer is what its layer `i` receives. So a hook in front of each wanted layer reads them,
and an exception in front of the deepest ends the forward pass there. Whether a model keeps to this is not assumed but
tried: on a first batch both ways must agree bit for bit, else the whole model is run.

Legend of shapes: B pieces of a batch, T tokens (padded), D width.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from torch import nn

from storage.errors import UserError

_MODEL_FILES = {".json", ".txt", ".model", ".safetensors", ".bin"}


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before its weights are loaded."""

    path: str
    """What `from_pretrained` is given: a folder or a name."""
    num_layers: int
    max_context: int | None
    """Most tokens it takes at once, None when it says nothing."""
    fingerprint: str
    """Hash of the folder's files, or the commit of a model from the hub."""


@dataclass(frozen=True)
class TokenBatch:
    """Token ids padded on the right, and which of them are real."""

    ids_BT: torch.Tensor
    mask_BT: torch.Tensor


Reader = Callable[[TokenBatch], dict[int, torch.Tensor]]
"""From a batch to hidden states by their number, (B, T, D) each; what they hold in padding means nothing."""


def require_transformers() -> Any:
    """The `transformers` module. Raises UserError telling how to install it."""
    try:
        import transformers
    except ImportError as error:
        raise UserError("harvesting needs the transformers package; pip install -e '.[harvest]'") from error
    return transformers


def inspect_model(name: str) -> ModelFacts:
    """Read the model's configuration. Raises UserError when there is no such model or it has no layers to count."""
    transformers = require_transformers()
    path = _resolve(name)
    with _loading(name):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
    if getattr(config, "is_encoder_decoder", False):
        raise UserError(f"model: {name!r} is an encoder-decoder; choose an encoder or a causal language model")
    num_layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(num_layers, int):
        raise UserError(f"model: the configuration of {name!r} has no num_hidden_layers; choose a language model")
    folder = Path(path)
    fingerprint = _hash_folder(folder) if folder.is_dir() else str(getattr(config, "_commit_hash", None))
    return ModelFacts(path, num_layers, getattr(config, "max_position_embeddings", None), fingerprint)


def load_tokenizer(name: str, path: str) -> Any:
    """The model's tokenizer. Raises UserError."""
    transformers = require_transformers()
    with _loading(name):
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False)


def load_model(name: str, path: str) -> Any:
    """The model without its head, in evaluation mode, on the GPU when there is one. Raises UserError."""
    transformers = require_transformers()
    with _loading(name):
        model, loaded = transformers.AutoModel.from_pretrained(
            path, dtype="auto", trust_remote_code=False, output_loading_info=True
        )
    # A pooler is commonly absent and never on the way to a hidden state; anything else would be random numbers.
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)
    if missing:
        raise UserError(f"model: {name!r} has no weights for {missing[0]} ({len(missing)} missing)")
    model.config.use_cache = False
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def special_token_ids(tokenizer: Any) -> list[int]:
    """Ids of tokens that stand for no text. The unknown token stands for a word, unless it has another role too."""
    roles = [token for role, token in tokenizer.special_tokens_map.items() if role != "unk_token"]
    names = {str(name) for token in roles for name in (token if isinstance(token, list) else [token])}
    extra = {token for token in tokenizer.all_special_tokens if token != tokenizer.unk_token}
    return sorted({int(tokenizer.convert_tokens_to_ids(name)) for name in names | extra})


def pad(token_ids: list[np.ndarray], pad_id: int, device: torch.device | str) -> TokenBatch:
    """Pieces of (T) ids each as one batch."""
    longest = max(len(ids) for ids in token_ids)
    padded_BT = np.full((len(token_ids), longest), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(token_ids), longest), dtype=np.int64)
    for row, ids in enumerate(token_ids):
        padded_BT[row, : len(ids)] = ids
        mask_BT[row, : len(ids)] = 1
    return TokenBatch(torch.from_numpy(padded_BT).to(device), torch.from_numpy(mask_BT).to(device))


def choose_reader(model: Any, num_layers: int, wanted: set[int], first: TokenBatch) -> Reader:
    """The early-stopping reader when it agrees with the whole model on `first`, else the whole model."""

    def whole(batch: TokenBatch) -> dict[int, torch.Tensor]:
        return read_whole(model, wanted, batch)

    def early(batch: TokenBatch) -> dict[int, torch.Tensor]:
        assert layers is not None
        return read_early(model, layers, wanted, batch)

    layers = find_layers(model, num_layers)
    # The last hidden state usually has a final norm behind it, and saves no layer.
    if layers is None or max(wanted) >= num_layers:
        return whole
    expected, found, real_BT = whole(first), early(first), first.mask_BT.bool()
    same = found.keys() == expected.keys() and all(torch.equal(found[i][real_BT], expected[i][real_BT]) for i in wanted)
    return early if same else whole


def find_layers(model: nn.Module, num_layers: int) -> nn.ModuleList | None:
    """The outermost list of `num_layers` modules, which in nearly all models is the stack of layers."""
    return next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers), None)


@torch.no_grad()
def read_whole(model: Any, wanted: set[int], batch: TokenBatch) -> dict[int, torch.Tensor]:
    """Hidden states as the model itself reports them. Raises UserError when it reports fewer."""
    output = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, output_hidden_states=True)
    states = getattr(output, "hidden_states", None) or ()
    if len(states) <= max(wanted):
        raise UserError(f"sites: hidden_state {max(wanted)}, but the model gives {len(states)} hidden states")
    return {number: states[number] for number in wanted}


@torch.no_grad()
def read_early(model: Any, layers: nn.ModuleList, wanted: set[int], batch: TokenBatch) -> dict[int, torch.Tensor]:
    """Hidden states in front of their layers; no layer from the deepest one on is run."""
    states: dict[int, torch.Tensor] = {}

    def hook_for(number: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[number] = args[0] if args else kwargs["hidden_states"]
            if number == max(wanted):
                raise _DeepestReachedError

        return read

    with ExitStack() as hooks:
        for number in wanted:
            handle = layers[number].register_forward_pre_hook(hook_for(number), with_kwargs=True)
            hooks.callback(handle.remove)
        try:
            model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT)
        except _DeepestReachedError:
            pass
    return states


class _DeepestReachedError(Exception):
    """Ends a forward pass early."""


def _resolve(name: str) -> str:
    """What `from_pretrained` takes for the `model` of a harvest file."""
    if name.startswith("package:"):
        return _resolve_package(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"model: no folder {name!r}")
    return name


def _resolve_package(name: str) -> str:
    package, _, subfolder = name.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package) if package else None
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model: no Python package {package!r} is installed; pip install it or fix {name!r}")
    for root in spec.submodule_search_locations:
        folder = Path(root, subfolder)
        if folder.is_dir():
            return str(folder)
    raise UserError(f"model: the Python package {package!r} has no folder {subfolder!r}")


def _hash_folder(folder: Path) -> str:
    """xxh3-128 of the names and bytes of the files that decide what a model in a folder computes."""
    digest = xxhash.xxh3_128()
    for path in sorted(p for p in folder.iterdir() if p.suffix in _MODEL_FILES and p.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return str(digest.hexdigest())


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Quiet loading; whatever a model folder makes transformers raise becomes one line for the user."""
    from transformers.utils import logging

    verbosity, bar_was_on = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"model: cannot load {name!r} ({lines[0]})") from error
    finally:
        logging.set_verbosity(verbosity)
        if bar_was_on:
            logging.enable_progress_bar()
