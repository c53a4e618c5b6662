"""sparsify folders: `cfg.json` and `sae.safetensors`, one hook point each, as sparsify 1.3 reads them.

sparsify has two activations, topk and groupmax; autoencoders subtract b_dec from the input, transcoders do not.

Shapes: D width of both sites, F latents.
"""

from __future__ import annotations

import json

from safetensors.torch import save

from lexray.storage.errors import UserError
from lexray.storage.store import Store
from lexray.training.export.folded import Folded
from lexray.training.export.origin import Origin

CONFIG, TENSORS = "cfg.json", "sae.safetensors"
ACTIVATIONS = {"topk": "topk", "group_max": "groupmax"}


def write(folded: Folded, origin: Origin, store: Store) -> tuple[str, list[str]]:
    """Write the folder. Returns the name of its activation there, and the files. Raises UserError."""
    if folded.activation not in ACTIVATIONS:
        raise UserError(f"{origin.architecture}: sparsify has topk and groupmax, no {folded.activation}; try sae-lens")
    (num_latents, d_in), d_out = folded.W_enc_FD.shape, len(folded.b_dec_O)
    if d_in != d_out:
        raise UserError(
            f"{origin.architecture}: the sites are {d_in} and {d_out} wide, and sparsify has one width for both"
        )
    tensors = {
        "encoder.weight": folded.W_enc_FD,
        "encoder.bias": folded.bias_F if folded.transcodes else folded.bias_of_centred_F(),
        "W_dec": folded.W_dec_FO,
        "b_dec": folded.b_dec_O,
    }
    if folded.W_skip_OD is not None:
        tensors["W_skip"] = folded.W_skip_OD
    config = {
        "activation": ACTIVATIONS[folded.activation],
        "expansion_factor": max(1, num_latents // d_in),
        "normalize_decoder": False,  # it is as it should be: no reader may touch it
        "num_latents": num_latents,
        "k": folded.k,
        "multi_topk": False,
        "skip_connection": folded.W_skip_OD is not None,
        "transcode": folded.transcodes,
        "d_in": d_in,
    }
    store.write(TENSORS, save({name: tensor.float().contiguous() for name, tensor in tensors.items()}))
    store.write(CONFIG, json.dumps(config, indent=1).encode())
    return str(config["activation"]), [TENSORS, CONFIG]
