"""Read a SAELens folder: every option and tensor is used, known to have no effect, or refused by name.

Ignoring a part of a dictionary would silently change what it computes. So shapes are compared with `d_in`, `d_out` and
`d_sae` before any tensor is read, and unknown options stop the import. An option that is null counts as missing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.store import Store, reachable
from lexray.training.checkpoint.foreign_json import read_object
from lexray.training.checkpoint.saved import check_finite
from lexray.training.checkpoint.tensor_file import FLOATS, Shape, TensorFileError, check_shapes, read_header
from lexray.training.export.sae_lens import CONFIG, TENSORS

Tensors = dict[str, Tensor]

D_IN, D_OUT, D_SAE = "d_in", "d_out", "d_sae"
_LINEAR = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_OUT), "b_dec": (D_OUT,)}
_THRESHOLD, _SKIP = {"threshold": (D_SAE,)}, {"W_skip": (D_OUT, D_IN)}
_GATE = dict.fromkeys(("b_gate", "b_mag", "r_mag"), (D_SAE,))
SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "standard": _LINEAR,
    "gated": {name: _LINEAR[name] for name in ("W_enc", "W_dec", "b_dec")} | _GATE,
    "jumprelu": _LINEAR | _THRESHOLD,
    "topk": _LINEAR,
    "abstopk": _LINEAR,
    "matching_pursuit": {name: _LINEAR[name] for name in ("W_dec", "b_dec")},
    "transcoder": _LINEAR,
    "skip_transcoder": _LINEAR | _SKIP,
    "jumprelu_transcoder": _LINEAR | _THRESHOLD,
    "jumprelu_skip_transcoder": _LINEAR | _THRESHOLD | _SKIP,
}
"""Tensors of each architecture and their shapes; only transcoders have a separate d_out."""

_EVERYWHERE = ("architecture", D_IN, D_SAE, "dtype", "device", "apply_b_dec_to_input", "normalize_activations",
               "reshape_activations", "metadata")  # fmt: skip
_TOPK = ("k", "rescale_acts_by_decoder_norm")
_OWN = {
    "topk": _TOPK,
    "abstopk": _TOPK,
    "matching_pursuit": ("residual_threshold", "max_iterations", "stop_on_duplicate_support"),
    **{name: (D_OUT,) for name in SHAPES if "transcoder" in name},
}
"""Options that are read, for every architecture and for some."""

_ABOUT_TRAINING = frozenset((
    "decoder_init_norm", "l1_coefficient", "lp_norm", "l1_warm_up_steps", "l0_coefficient", "l0_warm_up_steps",
    "jumprelu_init_threshold", "jumprelu_bandwidth", "jumprelu_sparsity_loss_mode", "jumprelu_tanh_scale",
    "pre_act_loss_coefficient", "aux_loss_coefficient", "use_sparse_activations",
))  # fmt: skip
_ABOUT_ORIGIN = frozenset((
    "model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "hook_layer", "hook_head_index",
    "prepend_bos", "context_size", "dataset_path", "dataset_trust_remote_code", "seqpos_slice",
    "exclude_special_tokens", "neuronpedia_id", "sae_lens_version", "sae_lens_training_version",
))  # fmt: skip
_NEUTRAL: dict[str, Any] = {
    "activation_fn": "relu",
    "activation_fn_str": "relu",
    "activation_fn_kwargs": {},
    "finetuning_scaling_factor": False,
    "rescale_acts_by_decoder_norm": False,
}
"""Options of older versions or other architectures, with the value at which they have no effect."""

_DTYPES = ("float64", "float32", "float16", "bfloat16")
_RESHAPES = ("none", "hook_z")
"""Both leave flat rows unchanged: `hook_z` concatenates heads."""


@dataclass(frozen=True)
class Source:
    """A SAELens folder that was read: options of known names, tensors in float32 of checked shapes."""

    url: str
    config: dict[str, Any]
    tensors: Tensors

    @property
    def architecture(self) -> str:
        return str(self.config["architecture"])

    def whole(self, name: str, *, least: int = 1, most: int | None = None) -> int:
        """Return an integer option from `least` to `most`. Raises UserError naming the option."""
        value = _given(self.url, self.config, name)
        if type(value) is not int or value < least or (most is not None and value > most):
            upper = "" if most is None else f" to {most:,}"
            raise _wrong(self.url, name, value, f"a whole number from {least}{upper}")
        return value

    def number(self, name: str) -> float:
        return _number(self.url, name, _given(self.url, self.config, name))

    def flag(self, name: str, default: bool | None = None) -> bool:
        value = self.config.get(name, default)
        if type(value) is not bool:
            raise _wrong(self.url, name, _given(self.url, self.config, name), "true or false")
        return value

    @property
    def subtracts_bias(self) -> bool:
        return self.flag("apply_b_dec_to_input")

    @property
    def dtype(self) -> str:
        """Dtype of the weights, in which SAELens computes."""
        return str(self.config.get("dtype", "float32")).removeprefix("torch.")

    @property
    def l0(self) -> float | None:
        """The L0 that the folder states, None where it does not."""
        value = self.config["metadata"].get("l0")
        return None if value is None else _number(self.url, "metadata.l0", value)


def read_source(store: Store) -> Source:
    """Read a folder. Raises UserError when it is not of SAELens 6, or holds something unsupported."""
    try:
        with reachable("import", store.url):
            config = _checked(store.url, read_object(store, CONFIG, store.url))
            return Source(store.url, config, _tensors(store, config))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{store.url}: no SAELens folder ({CONFIG} and {TENSORS} are needed)") from error
    except (TensorFileError, SafetensorError) as error:
        raise UserError(f"{store.url}: {TENSORS} is damaged or does not fit {CONFIG} ({error})") from error


def _tensors(store: Store, config: Mapping[str, Any]) -> Tensors:
    header, wanted = read_header(store, TENSORS), _shapes(store.url, config)
    for name, stored in header.items():
        if stored.dtype not in FLOATS:
            raise TensorFileError(f"{name[:80]!r} holds {stored.dtype}, floats are expected")
    by = f"{CONFIG} ({config['architecture']}, {D_IN} {config[D_IN]}, {D_SAE} {config[D_SAE]})"
    check_shapes({name: stored.shape for name, stored in header.items()}, wanted, by=by)
    tensors = {name: tensor.float() for name, tensor in load(store.read(TENSORS)).items()}
    for name, tensor in tensors.items():
        check_finite(name, tensor)
    return tensors


def _shapes(url: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    source = Source(url, dict(config), {})
    widths = {name: source.whole(name) for name in (D_IN, D_SAE)}
    widths[D_OUT] = source.whole(D_OUT) if D_OUT in _OWN.get(source.architecture, ()) else widths[D_IN]
    return {name: tuple(widths[width] for width in shape) for name, shape in SHAPES[source.architecture].items()}


def _checked(url: str, config: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are set. Raises UserError for other versions than SAELens 6 and for unknown options."""
    config = {name: value for name, value in config.items() if value is not None}
    name = config.get("architecture")
    if not isinstance(name, str):
        raise UserError(f"{url}: {CONFIG} names no architecture")
    metadata = config.setdefault("metadata", {})
    if not isinstance(metadata, dict):
        raise _wrong(url, "metadata", metadata, "an object of names and values")
    if _major_version(metadata) < 6:
        raise UserError(f"{url}: written before SAELens 6; load it with SAELens 6 and save it again")
    if name not in SHAPES:
        raise UserError(f"{url}: architecture {name[:80]!r} has no place; known: {', '.join(SHAPES)}")
    if (normalised := config.get("normalize_activations", "none")) != "none":
        raise UserError(
            f"{url}: normalize_activations is {_short(normalised)}, which is not in the weights; fold it with SAELens "
            "first"
        )
    for option, known in (("dtype", _DTYPES), ("reshape_activations", _RESHAPES)):
        value = config.get(option, known[0])
        if not isinstance(value, str) or value.removeprefix("torch.") not in known:
            raise _wrong(url, option, value, f"one of {', '.join(known)}")
    _refuse_unknown(url, name, config)
    return config


def _refuse_unknown(url: str, architecture: str, config: Mapping[str, Any]) -> None:
    read = {*_EVERYWHERE, *_OWN.get(architecture, ())}
    for name, value in config.items():
        if name in read or name in _ABOUT_TRAINING or name in _ABOUT_ORIGIN:
            continue
        if name not in _NEUTRAL or value != _NEUTRAL[name] or type(value) is not type(_NEUTRAL[name]):
            raise UserError(
                f"{url}: {CONFIG} has {_short(name)}: {_short(value)}, which {architecture} has no place for here and "
                "which may change what it computes; fold it with SAELens, or remove it if it says nothing"
            )


def _major_version(metadata: Mapping[str, Any]) -> int:
    version = str(metadata.get("sae_lens_version") or 0).split(".")[0]
    return int(version) if version.isascii() and version.isdigit() and len(version) < 9 else 0


def _given(url: str, config: Mapping[str, Any], name: str) -> Any:
    if name not in config:
        raise UserError(f"{url}: {CONFIG} has no {name}, which {config['architecture']} needs")
    return config[name]


def _number(url: str, name: str, value: Any) -> float:
    if type(value) not in (int, float) or abs(value) > sys.float_info.max:
        raise _wrong(url, name, value, "a number")
    return float(value)


def _wrong(url: str, name: str, value: Any, expected: str) -> UserError:
    return UserError(f"{url}: {CONFIG}: {name}: {_short(value)} is not {expected}")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isidentifier() else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
