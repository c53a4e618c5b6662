"""Import a SAELens folder as a saved dictionary with the same codes and reconstructions.

The dictionary reads raw activations through the normaliser `none`; its atoms keep their lengths (`decoder_norm:
ignored`), so that codes are SAELens' own. SAELens' per-row normalisation (`normalize_activations`)
is not supported and is refused.

Shapes: D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lexray.storage.errors import UserError
from lexray.storage.store import StorageSettings, Store
from lexray.training.checkpoint.saved import check_finite, save_dictionary
from lexray.training.checkpoint.tensor_file import TensorFileError
from lexray.training.codes.jumprelu import JumpReLU
from lexray.training.dictionaries import dictionary_config, make_dictionary
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.dictionaries.normalisers import Sites
from lexray.training.export import check_empty
from lexray.training.export.sae_lens_source import D_IN, D_OUT, D_SAE, Source, Tensors, read_source

THRESHOLD = "threshold"
"""SAELens' threshold, which is not a parameter here: jumprelu learns its logarithm."""

UNIT_ATOMS = 1e-5
"""Tolerance on |norm - 1| within which matching pursuit's atoms count as unit atoms."""


@dataclass(frozen=True, kw_only=True)
class Imported:
    """An imported dictionary."""

    url: str
    architecture: str
    """lexray's name of the architecture."""
    width: int
    notes: tuple[str, ...]


def import_sae_lens(url: str, path: str, settings: StorageSettings | None = None) -> Imported:
    """Import the SAELens dictionary at `url` into the empty folder `path`. Raises UserError with the reason."""
    source = read_source(Store.at(url, settings))
    options, tensors, notes = _READERS[source.architecture](source)
    transcodes, width = "transcoder" in source.architecture, source.config[D_SAE]
    options = {"width": width, "target_l0": _l0(source, width), "normaliser": "none", **options}
    widths = {"inputs": [source.config[D_IN]], "outputs": [source.config[D_OUT if transcodes else D_IN]]}
    store = Store.at(path, settings)
    check_empty(store)
    try:
        sites = Sites.of_widths(widths, reconstructs_its_input=not transcodes)
        dictionary = make_dictionary(dictionary_config(options), sites)
        threshold_F = tensors.pop(THRESHOLD, None)
        for name, tensor in tensors.items():
            check_finite(name, tensor)
        dictionary.load_state_dict({**dictionary.state_dict(), **tensors})
    except (UserError, TensorFileError, RuntimeError) as error:
        raise UserError(f"{source.url}: does not make a dictionary ({str(error).splitlines()[-1].strip()})") from error
    if threshold_F is not None:
        assert isinstance(dictionary, LearnedDictionary)
        assert isinstance(dictionary.code, JumpReLU)
        dictionary.code.set_threshold(threshold_F.clamp_min(0))  # SAELens rectifies too: below zero has no effect
    about = {"imported": {"from": source.url, "format": "sae-lens", "config": source.config}}
    save_dictionary(store, dictionary, about=about)
    if source.dtype != "float32":
        notes = [*notes, f"its weights are {source.dtype} and SAELens computes in that; here they are float32"]
    return Imported(url=store.url, architecture=options["architecture"], width=width, notes=tuple(notes))


def _l0(source: Source, width: int) -> float:
    """Return the L0 that the folder states, else 1; only codes with k use it as an option, and these state k."""
    return float(min(max(source.l0 or 1, 1e-6), width))


# One function an architecture: options, tensors, notes ---------------------------------------------------------------

Read = tuple[dict[str, Any], Tensors, list[str]]


def _linear(source: Source, *, minus_b_dec: bool) -> Tensors:
    """The linear encoder and decoder; `minus_b_dec`: whether the dictionary subtracts b_dec itself."""
    W_enc_FD, b_dec_O = source.tensors["W_enc"].T.contiguous(), source.tensors["b_dec"]
    bias_F = source.tensors["b_enc"]
    if source.subtracts_bias != minus_b_dec:
        shift_F = (W_enc_FD.double() @ b_dec_O.double()).float()
        bias_F = bias_F + shift_F if minus_b_dec else bias_F - shift_F
    return {"W_enc": W_enc_FD, "b_enc": bias_F, "W_dec": source.tensors["W_dec"], "b_dec": b_dec_O}


def _standard(source: Source) -> Read:
    return {"architecture": "relu", "decoder_norm": "ignored"}, _linear(source, minus_b_dec=True), []


def _jumprelu(source: Source) -> Read:
    tensors = _linear(source, minus_b_dec=False)
    tensors[THRESHOLD] = source.tensors["threshold"]
    return {"architecture": "jumprelu", "decoder_norm": "ignored"}, tensors, []


def _topk(source: Source, architecture: str = "topk") -> Read:
    tensors = _linear(source, minus_b_dec=True)
    if source.flag("rescale_acts_by_decoder_norm", default=False):
        norms_F = tensors["W_dec"].norm(dim=1)
        tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms_F[:, None], tensors["b_enc"] * norms_F
        # An atom of length 0 is kept: its latent is never chosen.
        tensors["W_dec"] = tensors["W_dec"] / torch.where(norms_F > 0, norms_F, 1.0)[:, None]
    k = source.whole("k", most=source.config[D_SAE])
    options = {"architecture": architecture, "decoder_norm": "ignored", "target_l0": float(k)}
    return options, tensors, []


def _abs_topk(source: Source) -> Read:
    return _topk(source, "abs_topk")


def _gated(source: Source) -> Read:
    W_enc_FD, b_dec_O, r_mag_F = (
        source.tensors["W_enc"].T.contiguous(),
        source.tensors["b_dec"],
        source.tensors["r_mag"],
    )
    b_gate_F, b_mag_F = source.tensors["b_gate"].double(), source.tensors["b_mag"].double()
    if not source.subtracts_bias:
        shift_F = W_enc_FD.double() @ b_dec_O.double()
        b_gate_F, b_mag_F = b_gate_F + shift_F, b_mag_F + shift_F * r_mag_F.double().exp()
    tensors = {
        "W_enc": W_enc_FD,
        "W_dec": source.tensors["W_dec"],
        "b_dec": b_dec_O,
        "b_gate": b_gate_F.float(),
        "b_mag": b_mag_F.float(),
        "r_mag": r_mag_F,
    }
    return {"architecture": "gated", "decoder_norm": "ignored"}, tensors, []


def _pursuit(source: Source) -> Read:
    W_dec_FD = source.tensors["W_dec"]
    unit = bool((W_dec_FD.norm(dim=1) - 1).abs().max() <= UNIT_ATOMS)
    rounds = source.whole("max_iterations") if "max_iterations" in source.config else W_dec_FD.shape[1]
    threshold = source.number("residual_threshold")
    options = {
        "architecture": "mp",
        "decoder_norm": "unit" if unit else "ignored",
        "rounds": rounds,
        "residual_threshold": max(0.0, threshold),
        "stop_at_repeat": source.flag("stop_on_duplicate_support"),
    }
    b_dec_D = source.tensors["b_dec"] * float(source.subtracts_bias)  # without, it is not added either
    short = f"rows that begin closer than {threshold:.4g} to b_dec have no active latent here and one there"
    return options, {"W_dec": W_dec_FD, "b_dec": b_dec_D}, [short] if threshold > 0 else []


def _transcoder(source: Source) -> Read:
    """Read relu or jumprelu, with or without a skip connection; b_dec belongs to the output and is not subtracted."""
    name = source.architecture
    if source.subtracts_bias:
        raise UserError(f"{source.url}: apply_b_dec_to_input is true, but b_dec of a {name} belongs to its output")
    tensors = _linear(source, minus_b_dec=False)
    code = "jumprelu" if name.startswith("jumprelu") else "relu"
    if code == "jumprelu":
        tensors[THRESHOLD] = source.tensors["threshold"]
    if "skip" in name:
        tensors["W_skip"] = source.tensors["W_skip"]
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
