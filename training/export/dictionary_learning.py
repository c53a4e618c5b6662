"""dictionary_learning folders: `config.json` and `ae.pt`, as dictionary_learning 0.1 and SAEBench read them.

`ae.pt` is the only file that the library's own loader takes, so this is the one export that is not safetensors: a
plain dictionary of tensors written by `torch.save`, which loads with `weights_only=True`. lexray itself never reads it.
All its classes but AutoEncoderNew and JumpReluAutoEncoder subtract the decoder's bias from the input. AutoEncoder's
loader rescales atoms to length 1, and the code with them, so ReLU codes whose atoms have other lengths are written as
AutoEncoderNew, which keeps them.

Shapes: D width of the site, F latents.
"""

from __future__ import annotations

import io
import json
from typing import Any

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.export.folded import Folded, are_equal
from lexray.training.export.origin import Origin

CONFIG, TENSORS = "config.json", "ae.pt"
TRAINERS = {
    "AutoEncoder": "StandardTrainer",
    "AutoEncoderNew": "StandardTrainerAprilUpdate",
    "GatedAutoEncoder": "GatedSAETrainer",
    "JumpReluAutoEncoder": "JumpReluTrainer",
    "AutoEncoderTopK": "TopKTrainer",
    "BatchTopKSAE": "BatchTopKTrainer",
    "MatryoshkaBatchTopKSAE": "MatryoshkaBatchTopKTrainer",
}
"""Trainer class by dictionary class; SAEBench selects a reader by it."""

NO_THRESHOLD = -1.0
"""Value that the library writes before a threshold is estimated."""


def write(folded: Folded, origin: Origin, store: Store) -> tuple[str, list[str]]:
    """Write the folder. Returns the dictionary's class name there, and the files. Raises UserError."""
    name = _class_name(folded, origin)
    file = io.BytesIO()
    torch.save({key: tensor.contiguous().clone() for key, tensor in _tensors(folded, name).items()}, file)
    store.write(TENSORS, file.getvalue())
    store.write(CONFIG, json.dumps(_config(folded, origin, name), indent=1).encode())
    return name, [TENSORS, CONFIG]


def _class_name(folded: Folded, origin: Origin) -> str:
    if folded.transcodes:
        raise UserError(f"{origin.architecture}: dictionary_learning has no transcoders; try sae-lens or sparsify")
    if folded.activation == "relu":
        ones = bool((folded.norms_F - 1).abs().max() <= 1e-6)
        return "AutoEncoder" if ones else "AutoEncoderNew"
    if folded.activation == "jumprelu":
        assert folded.threshold_F is not None
        if folded.k is None or not are_equal(folded.threshold_F):
            return "JumpReluAutoEncoder"
        return "MatryoshkaBatchTopKSAE" if folded.prefix_widths else "BatchTopKSAE"
    names = {"gated": "GatedAutoEncoder", "topk": "AutoEncoderTopK"}
    if folded.activation not in names:
        other = "sparsify" if folded.activation == "group_max" else "sae-lens"
        raise UserError(
            f"{origin.architecture}: dictionary_learning has relu, gated, jumprelu, topk and batch_topk codes, "
            f"no {folded.activation}; try {other}"
        )
    return names[folded.activation]


def _tensors(folded: Folded, name: str) -> dict[str, Tensor]:
    linear = {"encoder.weight": folded.W_enc_FD.float(), "decoder.weight": folded.W_dec_FO.T.float()}
    plain = {"W_enc": folded.W_enc_FD.T.float(), "W_dec": folded.W_dec_FO.float()}
    b_dec, centred = folded.b_dec_O.float(), folded.bias_of_centred_F()
    match name:
        case "AutoEncoder":
            return {**linear, "encoder.bias": centred.float(), "bias": b_dec}
        case "AutoEncoderNew":
            return {**linear, "encoder.bias": folded.bias_F.float(), "decoder.bias": b_dec}
        case "GatedAutoEncoder":
            return {**linear, "decoder_bias": b_dec, **_gate(folded, centred)}
        case "JumpReluAutoEncoder":
            assert folded.threshold_F is not None
            return {**plain, "b_enc": folded.bias_F.float(), "b_dec": b_dec, "threshold": folded.threshold_F.float()}
        case "MatryoshkaBatchTopKSAE":
            sizes = {"group_sizes": _group_sizes(folded)}
            return {**plain, "b_enc": centred.float(), "b_dec": b_dec, **_kept(folded), **sizes}
        case _:
            return {**linear, "encoder.bias": centred.float(), "b_dec": b_dec, **_kept(folded)}


def _gate(folded: Folded, shared_F: Tensor) -> dict[str, Tensor]:
    """Return the two biases, for a shared pre-activation of rows from which b_dec was subtracted."""
    assert folded.gate is not None
    r_mag_F = folded.gate.r_mag_F
    return {
        "gate_bias": (folded.gate.b_gate_F + shared_F).float(),
        "mag_bias": (folded.gate.b_mag_F + shared_F * r_mag_F.exp()).float(),
        "r_mag": r_mag_F.float(),
    }


def _group_sizes(folded: Folded) -> Tensor:
    """Return the number of latents that each Matryoshka prefix adds to the previous one."""
    return torch.tensor([0, *folded.prefix_widths]).diff()


def _kept(folded: Folded) -> dict[str, Tensor]:
    """Return k and the threshold that replaces it at inference."""
    threshold = NO_THRESHOLD if folded.threshold_F is None else float(folded.threshold_F[0])
    return {"k": torch.tensor(folded.k, dtype=torch.int32), "threshold": torch.tensor(threshold)}


def _config(folded: Folded, origin: Origin, name: str) -> dict[str, Any]:
    num_latents, width = folded.W_enc_FD.shape
    trainer = {
        "trainer_class": TRAINERS[name],
        "dict_class": name,
        "activation_dim": width,
        "dict_size": num_latents,
        "lr": origin.lr,
        "steps": origin.steps,
        **({} if folded.k is None else {"k": folded.k}),
        **({"group_sizes": _group_sizes(folded).tolist()} if name == "MatryoshkaBatchTopKSAE" else {}),
        "layer": origin.layer,
        "lm_name": origin.model or "unknown",  # readers split it at slashes
        "submodule_name": origin.hook_name or next(iter(origin.sites), None),
        "wandb_name": origin.architecture,
        "device": "cpu",
        "seed": None,
    }
    return {"trainer": trainer, "buffer": {"d_submodule": width, "io": "out", "ctx_len": origin.context_length}}
