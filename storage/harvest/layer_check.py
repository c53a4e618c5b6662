"""Layers that sites name by number are tried on a text: each must read what the one before it gives.

Which list of modules is the stack of layers, and which part of a layer is its attention, is guessed from names and
lengths. XLM keeps its attentions and MLPs in lists of their own, BLOOM's parts add the residual stream themselves; a
wrong guess would be stored as rows of another place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from lexray.storage.errors import UserError
from lexray.storage.harvest.site_choice import TensorSite, find_layers, role_error

Read = Callable[[set[TensorSite]], dict[TensorSite, torch.Tensor]]
"""Runs the whole model on a text and gives what it holds at these places."""


def check_layers(model: nn.Module, num_layers: int, places: Mapping[str, TensorSite], read: Read) -> None:
    """Raise UserError for a layer that does not read what the one before it gives, or the next one what it gives.

    Parts of a layer that were found by their names must add up: `out = in + attention + mlp`. Others are known.
    """
    found_layers = find_layers(model, num_layers)
    for name, place in places.items():
        if place.layer is None:
            continue
        assert found_layers is not None, "the place was found in them"
        stack, number = found_layers[0], place.layer
        path = f"{stack}.{number}"
        x_in, x_out = TensorSite(None, path, True), TensorSite(None, path)
        joints = [(x_in, TensorSite(None, f"{stack}.{number - 1}"))] if number else []
        if number + 1 < num_layers:
            joints.append((x_out, TensorSite(None, f"{stack}.{number + 1}", True)))
        wanted = {x_in, x_out, *(TensorSite(None, part) for part in place.parts or ())}
        found = _rows(read(wanted.union(*joints)))
        if not all(torch.equal(found[one], found[other]) for one, other in joints):
            raise UserError(
                f"sites.{name}.layer: {path} does not read what the module before it gives, so {stack} may be no stack "
                "of layers; give a hidden_state or a module"
            )
        if place.parts is not None:
            attention, mlp = (found[TensorSite(None, part)] for part in place.parts)
            if not close(found[x_in] + attention + mlp, found[x_out]):
                raise role_error(name, _role(place), model, path)


def _rows(found: dict[TensorSite, torch.Tensor]) -> dict[TensorSite, torch.Tensor]:
    """Vectors of one text in the order of its tokens, however they are laid out."""
    return {place: x.reshape(-1, x.shape[-1]) for place, x in found.items()}


def close(x_ND: torch.Tensor, expected_ND: torch.Tensor) -> bool:
    """Whether vectors are equal but for rounding, altogether."""
    tolerance = 1e-3 if expected_ND.dtype == torch.float32 else 0.05
    if x_ND.shape != expected_ND.shape:
        return False
    distance = (x_ND.double() - expected_ND.double()).norm()
    return bool(distance <= tolerance * expected_ND.double().norm())


def _role(place: TensorSite) -> str:
    if place.is_input:
        return "mlp_in"
    assert place.parts is not None
    return "attention_out" if place.module == place.parts[0] else "mlp_out"
