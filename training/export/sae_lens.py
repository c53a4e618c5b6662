"""SAELens folders: `cfg.json` and `sae_weights.safetensors`, as SAELens 6 reads and writes them.

The encoder takes raw activations and b_dec is not subtracted from them (`apply_b_dec_to_input` false), the form on
which all readers agree; matching pursuit alone must subtract it. BatchTopK and Matryoshka are jumprelu with the
running threshold for every latent, as SAELens saves its own.

Shapes: D width of the input site, O width of the output site, F latents.
"""

from __future__ import annotations

import json
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.codes.folding import COMPARING
from lexray.training.export.folded import Folded
from lexray.training.export.origin import Origin

CONFIG, TENSORS = "cfg.json", "sae_weights.safetensors"
VERSION = "6.54.12"
"""Version of SAELens whose format this is; readers use it to recognise the names of version 6."""

AUTOENCODERS = {
    "relu": "standard",
    "gated": "gated",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "abs_topk": "abstopk",
    "pursuit": "matching_pursuit",
}
TRANSCODERS = {("relu", False): "transcoder", ("jumprelu", False): "jumprelu_transcoder",
               ("relu", True): "skip_transcoder", ("jumprelu", True): "jumprelu_skip_transcoder"}  # fmt: skip


def write(folded: Folded, origin: Origin, store: Store) -> tuple[str, list[str]]:
    """Write the folder. Returns the architecture's name there, and the files. Raises UserError."""
    name = _architecture(folded, origin)
    store.write(TENSORS, save({key: tensor.float().contiguous() for key, tensor in _tensors(folded).items()}))
    store.write(CONFIG, json.dumps(_config(folded, origin, name), indent=1).encode())
    return name, [TENSORS, CONFIG]


def _architecture(folded: Folded, origin: Origin) -> str:
    if folded.transcodes:
        key = (folded.activation, folded.W_skip_OD is not None)
        if key not in TRANSCODERS:
            raise UserError(
                f"{origin.architecture}: SAELens' transcoders have relu and jumprelu codes, not {folded.activation}; "
                "sparsify has topk"
            )
        return TRANSCODERS[key]
    if folded.activation not in AUTOENCODERS:
        raise UserError(f"{origin.architecture}: SAELens has no {folded.activation} activation; sparsify has")
    return AUTOENCODERS[folded.activation]


def _tensors(folded: Folded) -> dict[str, Tensor]:
    decoder = {"W_dec": folded.W_dec_FO, "b_dec": folded.b_dec_O}
    if folded.pursuit is not None:
        return decoder
    tensors = {"W_enc": folded.W_enc_FD.T, **decoder}
    if folded.gate is not None:
        gate = folded.gate
        return {**tensors, "b_gate": gate.b_gate_F, "b_mag": gate.b_mag_F, "r_mag": gate.r_mag_F}
    tensors["b_enc"] = folded.bias_F
    if folded.threshold_F is not None:
        tensors["threshold"] = folded.threshold_F
    if folded.W_skip_OD is not None:
        tensors["W_skip"] = folded.W_skip_OD
    return tensors


def _config(folded: Folded, origin: Origin, name: str) -> dict[str, Any]:
    config: dict[str, Any] = {
        "architecture": name,
        "d_in": len(folded.b_dec_O) if folded.pursuit is not None else folded.W_enc_FD.shape[1],
        "d_sae": len(folded.W_dec_FO),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": folded.pursuit is not None,
        "normalize_activations": "none",
        "reshape_activations": "none",
    }
    if folded.transcodes:
        config["d_out"] = len(folded.b_dec_O)
    if folded.activation in COMPARING:
        config |= {"k": folded.k, "rescale_acts_by_decoder_norm": False}
    if folded.pursuit is not None:
        rule = folded.pursuit
        config |= {
            "residual_threshold": rule.residual_norm,
            "max_iterations": rule.rounds,
            "stop_on_duplicate_support": rule.at_repeat,
        }
    return {**config, "metadata": _metadata(origin)}


def _metadata(origin: Origin) -> dict[str, Any]:
    known = {
        "model_name": origin.model,
        "hook_name": origin.hook_name,
        "hook_name_out": origin.hook_name_out,
        "context_size": origin.context_length,
        "l0": origin.l0,
        "training_architecture": origin.architecture,
        "trained_with": "lexray",
    }
    return {"sae_lens_version": VERSION, **{name: value for name, value in known.items() if value is not None}}
