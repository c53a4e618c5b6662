"""Hidden states of a Hugging Face model, running no layer beyond the deepest one asked for.

`hidden_states[i]` of a transformer is what its layer `i` receives. So a hook in front of each wanted layer reads them,
and an exception in front of the deepest ends the forward pass there. Whether a model keeps to this is not assumed but
tried: on a first batch both ways must agree bit for bit, else the whole model is run.

Legend of shapes: B pieces of a batch, T tokens (padded), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from storage.errors import UserError


@dataclass(frozen=True)
class TokenBatch:
    """Token ids padded on the right (B, T), and 1 where they are real (B, T)."""

    ids: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class HiddenStateReader:
    """Reads the wanted hidden states of pieces of text."""

    model: Any
    wanted: frozenset[int]
    layers: nn.ModuleList | None
    """The model's layers when reading may stop in front of one, None to run the whole model."""
    pad_id: int
    widths: dict[int, int]
    """Width of each wanted hidden state."""

    def read(self, token_ids: list[np.ndarray]) -> dict[int, torch.Tensor]:
        """From B pieces of (T) ids each to (B, T, D) per hidden state; what they hold in padding means nothing."""
        batch = pad(token_ids, self.pad_id, self.model.device)
        if self.layers is None:
            return read_whole(self.model, self.wanted, batch)
        return read_early(self.model, self.layers, self.wanted, batch)


def pad(token_ids: list[np.ndarray], pad_id: int, device: torch.device | str) -> TokenBatch:
    """Pieces of (T) ids each as one batch."""
    longest = max(len(ids) for ids in token_ids)
    padded_BT = np.full((len(token_ids), longest), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(token_ids), longest), dtype=np.int64)
    for row, ids in enumerate(token_ids):
        padded_BT[row, : len(ids)] = ids
        mask_BT[row, : len(ids)] = 1
    return TokenBatch(torch.from_numpy(padded_BT).to(device), torch.from_numpy(mask_BT).to(device))


def choose_reader(
    model: Any, *, num_layers: int, wanted: frozenset[int], pad_id: int, first: list[np.ndarray]
) -> HiddenStateReader:
    """A reader that stops early when that agrees with the whole model on the pieces `first`, else the whole model."""
    batch = pad(first, pad_id, model.device)
    expected = read_whole(model, wanted, batch)
    layers = find_layers(model, num_layers)
    # The last hidden state usually has a final norm behind it, and saves no layer.
    if layers is not None and (max(wanted) >= num_layers or not _agree(model, layers, batch, expected)):
        layers = None
    widths = {number: states.shape[-1] for number, states in expected.items()}
    return HiddenStateReader(model=model, wanted=wanted, layers=layers, pad_id=pad_id, widths=widths)


def _agree(model: Any, layers: nn.ModuleList, batch: TokenBatch, expected: dict[int, torch.Tensor]) -> bool:
    found, real_BT = read_early(model, layers, frozenset(expected), batch), batch.mask.bool()
    return found.keys() == expected.keys() and all(
        found[i].shape == expected[i].shape and torch.equal(found[i][real_BT], expected[i][real_BT]) for i in expected
    )


def find_layers(model: nn.Module, num_layers: int) -> nn.ModuleList | None:
    """The outermost list of `num_layers` modules, which in nearly all models is the stack of layers."""
    return next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers), None)


@torch.no_grad()
def read_whole(model: Any, wanted: frozenset[int], batch: TokenBatch) -> dict[int, torch.Tensor]:
    """Hidden states as the model itself reports them. Raises UserError when it reports fewer."""
    output = model(input_ids=batch.ids, attention_mask=batch.mask, output_hidden_states=True)
    states = getattr(output, "hidden_states", None) or ()
    if len(states) <= max(wanted):
        raise UserError(f"sites: hidden_state {max(wanted)}, but the model gives {len(states)} hidden states")
    return {number: states[number] for number in wanted}


@torch.no_grad()
def read_early(model: Any, layers: nn.ModuleList, wanted: frozenset[int], batch: TokenBatch) -> dict[int, torch.Tensor]:
    """Hidden states in front of their layers; no layer from the deepest one on is run."""
    states: dict[int, torch.Tensor] = {}
    deepest = max(wanted)

    def hook_for(number: int) -> Callable[..., None]:
        def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states[number] = args[0] if args else kwargs.get("hidden_states", torch.empty(0))
            if number == deepest:
                raise _DeepestReachedError

        return read

    with ExitStack() as hooks:
        for number in wanted:
            handle = layers[number].register_forward_pre_hook(hook_for(number), with_kwargs=True)
            hooks.callback(handle.remove)
        with suppress(_DeepestReachedError):
            model(input_ids=batch.ids, attention_mask=batch.mask)
    return states


class _DeepestReachedError(Exception):
    """Ends a forward pass early."""
