"""A SAELens folder as a saved dictionary with the same codes and reconstructions.

The dictionary reads raw activations through the normaliser `none`; its atoms keep their lengths (`decoder_norm:
ignored`), so that codes are SAELens' own. What SAELens computes per row before or after (`normalize_activations`) has
no place and is refused.

Shapes: D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.store import StorageSettings, Store
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.jumprelu import JumpReLU
from lexray.training.export import check_empty
from lexray.training.export.sae_lens import CONFIG, TENSORS
from lexray.training.normalisers import Sites
from lexray.training.saved import save_dictionary

Tensors = dict[str, Tensor]
THRESHOLD = "threshold"
"""Not a parameter of ours: jumprelu learns its logarithm."""

UNIT_ATOMS = 1e-5
"""How far from 1 the length of matching pursuit's atoms may be for them to count as unit atoms."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What was written."""

    url: str
    architecture: str
    """lexray's name of it."""
    width: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """A SAELens folder that was read."""

    url: str
    config: dict[str, Any]
    tensors: Tensors

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise UserError(f"{self.url}: {TENSORS} has no {name}, which {self.config['architecture']} needs")
        return self.tensors[name]

    def option(self, name: str) -> Any:
        if name not in self.config:
            raise UserError(f"{self.url}: {CONFIG} has no {name}, which {self.config['architecture']} needs")
        return self.config[name]

    @property
    def subtracts_bias(self) -> bool:
        return bool(self.option("apply_b_dec_to_input"))


def import_sae_lens(url: str, path: str, settings: StorageSettings | None = None) -> Imported:
    """Save the SAELens dictionary at `url` in the empty folder `path`. Raises UserError with the reason."""
    source = read_source(Store.at(url, settings))
    options, tensors, notes = _READERS[source.config["architecture"]](source)
    transcodes = "transcoder" in source.config["architecture"]
    width = len(source.tensor("W_dec"))
    options = {"width": width, "target_l0": _l0(source, width), "normaliser": "none", **options}
    sites = Sites.of_widths(_widths(source, transcodes), reconstructs_its_input=not transcodes)
    store = Store.at(path, settings)
    check_empty(store)
    try:
        dictionary = make_dictionary(dictionary_config(options), sites)
        threshold_F = tensors.pop(THRESHOLD, None)
        dictionary.load_state_dict({**dictionary.state_dict(), **tensors})
    except (UserError, RuntimeError) as error:
        raise UserError(f"{source.url}: does not make a dictionary ({str(error).splitlines()[-1].strip()})") from error
    if threshold_F is not None:
        assert isinstance(dictionary, JumpReLU)
        dictionary.set_threshold(threshold_F.clamp_min(0))  # below zero it is none: SAELens rectifies too
    about = {"imported": {"from": source.url, "format": "sae-lens", "config": source.config}}
    save_dictionary(store, dictionary, about=about)
    dtype = source.config.get("dtype", "float32")
    if dtype != "float32":
        notes = [*notes, f"its weights are {dtype} and SAELens computes in that; here they are float32"]
    return Imported(url=store.url, architecture=options["architecture"], width=width, notes=tuple(notes))


def read_source(store: Store) -> Source:
    """The folder, in float32. Raises UserError when it is none of SAELens 6 or computes what has no place."""
    try:
        config = json.loads(store.read(CONFIG))
        tensors = {name: tensor.float() for name, tensor in load(store.read(TENSORS)).items()}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{store.url}: no SAELens folder ({CONFIG} and {TENSORS} are needed)") from error
    except (ValueError, SafetensorError) as error:
        raise UserError(f"{store.url}: {CONFIG} or {TENSORS} is damaged ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise UserError(f"{store.url}: {CONFIG} names no architecture")
    if _major_version(config) < 6:
        raise UserError(f"{store.url}: written before SAELens 6; load it with SAELens 6 and save it again")
    if config["architecture"] not in _READERS:
        raise UserError(
            f"{store.url}: architecture {config['architecture']!r} has no place; known: {', '.join(_READERS)}"
        )
    if config.get("normalize_activations", "none") != "none":
        raise UserError(
            f"{store.url}: normalize_activations is {config['normalize_activations']}, which is not in the weights; "
            "fold it with SAELens first"
        )
    return Source(store.url, config, tensors)


def _major_version(config: dict[str, Any]) -> int:
    version = str((config.get("metadata") or {}).get("sae_lens_version") or 0).split(".")[0]
    return int(version) if version.isdigit() else 0


def _l0(source: Source, width: int) -> float:
    """The L0 that the folder tells, else 1: it is an option of codes of k latents alone, which tell it."""
    told = source.config.get("k") or (source.config.get("metadata") or {}).get("l0") or 1
    return float(min(max(told, 1e-6), width))


def _widths(source: Source, transcodes: bool) -> dict[str, list[int]]:
    d_out = source.tensor("W_dec").shape[1]
    d_in = source.tensor("W_enc").shape[0] if transcodes else d_out
    return {"inputs": [d_in], "outputs": [d_out]}


# One function an architecture: options, tensors, notes ---------------------------------------------------------------

Read = tuple[dict[str, Any], Tensors, list[str]]


def _linear(source: Source, *, minus_b_dec: bool) -> Tensors:
    """The linear encoder and decoder; `minus_b_dec` says that the dictionary subtracts b_dec itself."""
    W_enc_FD, b_dec_O = source.tensor("W_enc").T.contiguous(), source.tensor("b_dec")
    bias_F = source.tensor("b_enc")
    if source.subtracts_bias != minus_b_dec:
        shift_F = (W_enc_FD.double() @ b_dec_O.double()).float()
        bias_F = bias_F + shift_F if minus_b_dec else bias_F - shift_F
    return {"W_enc": W_enc_FD, "b_enc": bias_F, "W_dec": source.tensor("W_dec"), "b_dec": b_dec_O}


def _standard(source: Source) -> Read:
    return {"architecture": "relu", "decoder_norm": "ignored"}, _linear(source, minus_b_dec=True), []


def _jumprelu(source: Source) -> Read:
    tensors = _linear(source, minus_b_dec=False)
    tensors[THRESHOLD] = source.tensor("threshold")
    return {"architecture": "jumprelu", "decoder_norm": "ignored"}, tensors, []


def _topk(source: Source, architecture: str = "topk") -> Read:
    tensors = _linear(source, minus_b_dec=True)
    if source.config.get("rescale_acts_by_decoder_norm", False):
        norms_F = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms_F[:, None], tensors["b_enc"] * norms_F
        tensors["W_dec"] = tensors["W_dec"] / norms_F[:, None]
    options = {"architecture": architecture, "decoder_norm": "ignored", "target_l0": float(source.option("k"))}
    return options, tensors, []


def _abs_topk(source: Source) -> Read:
    return _topk(source, "abs_topk")


def _gated(source: Source) -> Read:
    W_enc_FD, b_dec_O, r_mag_F = source.tensor("W_enc").T.contiguous(), source.tensor("b_dec"), source.tensor("r_mag")
    b_gate_F, b_mag_F = source.tensor("b_gate").double(), source.tensor("b_mag").double()
    if not source.subtracts_bias:
        shift_F = W_enc_FD.double() @ b_dec_O.double()
        b_gate_F, b_mag_F = b_gate_F + shift_F, b_mag_F + shift_F * r_mag_F.double().exp()
    tensors = {
        "W_enc": W_enc_FD,
        "W_dec": source.tensor("W_dec"),
        "b_dec": b_dec_O,
        "b_gate": b_gate_F.float(),
        "b_mag": b_mag_F.float(),
        "r_mag": r_mag_F,
    }
    return {"architecture": "gated", "decoder_norm": "ignored"}, tensors, []


def _pursuit(source: Source) -> Read:
    W_dec_FD = source.tensor("W_dec")
    unit = bool((W_dec_FD.norm(dim=1) - 1).abs().max() <= UNIT_ATOMS)
    rounds = source.config.get("max_iterations") or W_dec_FD.shape[1]
    threshold = float(source.option("residual_threshold"))
    options = {
        "architecture": "mp",
        "decoder_norm": "unit" if unit else "ignored",
        "rounds": rounds,
        "residual_threshold": max(0.0, threshold),
        "stop_at_repeat": bool(source.option("stop_on_duplicate_support")),
    }
    b_dec_D = source.tensor("b_dec") * float(source.subtracts_bias)  # without, it is not added either
    short = f"rows that begin closer than {threshold:.4g} to b_dec have no active latent here and one there"
    return options, {"W_dec": W_dec_FD, "b_dec": b_dec_D}, [short] if threshold > 0 else []


def _transcoder(source: Source) -> Read:
    """relu or jumprelu, with or without a skip connection; b_dec belongs to the output and is never subtracted."""
    name = source.config["architecture"]
    tensors = _linear(source, minus_b_dec=False)
    code = "jumprelu" if name.startswith("jumprelu") else "relu"
    if code == "jumprelu":
        tensors[THRESHOLD] = source.tensor("threshold")
    if "skip" in name:
        tensors["W_skip"] = source.tensor("W_skip")
    architecture = "skip_transcoder" if "skip" in name else "transcoder"
    return {"architecture": architecture, "code": code, "decoder_norm": "ignored"}, tensors, []


_READERS = {
    "standard": _standard,
    "gated": _gated,
    "jumprelu": _jumprelu,
    "topk": _topk,
    "abstopk": _abs_topk,
    "matching_pursuit": _pursuit,
    "transcoder": _transcoder,
    "skip_transcoder": _transcoder,
    "jumprelu_transcoder": _transcoder,
    "jumprelu_skip_transcoder": _transcoder,
}
