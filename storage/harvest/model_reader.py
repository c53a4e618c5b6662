"""Read vectors inside a Hugging Face model: several places in one forward pass, stopping after the deepest one.

`hidden_states[i]` of a transformer is the input of its layer `i`, so a pre-hook on each such layer reads them, as hooks
read the inputs and outputs of any module; when all are read an exception ends the forward pass. This is not assumed but
tested: on a first batch both ways must agree bit for bit, else the whole model is run.

Legend of shapes: B pieces of a batch, T tokens (padded), D width.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lexray.storage.errors import UserError
from lexray.storage.harvest.layout import Inputs, Layouts, check_layers, longest_piece, measure_layouts, shape_error
from lexray.storage.harvest.site_choice import TensorSite, find_layers
from lexray.storage.harvest.tower import reads

Keep = Callable[[TensorSite, torch.Tensor], None]
"""Called with a place and its tensor when the model has reached it."""


@dataclass(frozen=True, kw_only=True)
class ModelReader:
    """Reads places of a model in a forward pass."""

    model: Any
    places: dict[str, TensorSite]
    """Place of each site."""
    layers: nn.ModuleList | None
    """The model's layers, for reading hidden states as their inputs; None to run the whole model."""
    layouts: Layouts
    """Layouts of a text batch's vectors; images are always (pieces, tokens, width)."""

    @property
    def pads(self) -> bool:
        """Whether texts of different lengths may be batched."""
        return self.layouts.pads

    def read(self, inputs: Inputs) -> dict[str, torch.Tensor]:
        """Return vectors per site (B, T, D), undefined in padding. Raises UserError where a token has no vector."""
        wanted = set(self.places.values())
        if self.layers is None:
            found = read_whole(self.model, wanted, inputs)
        else:
            found = read_early(self.model, self.layers, wanted, inputs)
        return {name: self._arrange(name, place, found[place], inputs) for name, place in self.places.items()}

    def _arrange(self, name: str, place: TensorSite, x: torch.Tensor, inputs: Inputs) -> torch.Tensor:
        layout = self.layouts.of.get(place)
        if layout is None:
            return x
        pieces, tokens = inputs["input_ids"].shape
        if not layout.fits(x, (pieces, tokens)):
            raise shape_error(name, place, x, (pieces, tokens))
        return layout.arrange(x, (pieces, tokens))


def choose_reader(
    model: Any, *, num_layers: int, places: dict[str, TensorSite], first: Inputs, pad_id: int = 0, batched: bool = True
) -> ModelReader:
    """Return a reader that stops early if that agrees with the whole model on the batch `first`, else runs it whole.

    `batched`: whether pieces will be batched. Raises UserError for a place without exactly one vector per token of a
    text, and for a layer whose input or output is not the model's own hidden state.
    """
    wanted = set(places.values())
    measured = Layouts({}, pads=True)
    if "input_ids" in first:
        read = partial(read_whole, model, wanted)
        measured = measure_layouts(read, places, first, pad_id=pad_id, batched=batched)
    alone = longest_piece(first)
    check_layers(model, num_layers, places, lambda wanted: read_whole(model, wanted, alone))
    whole = ModelReader(model=model, places=places, layers=None, layouts=measured)
    expected = whole.read(first)
    for name, place in places.items():
        if expected[name].dim() != 3:
            raise shape_error(name, place, expected[name], (len(next(iter(first.values()))), 0))
    layers = _layers_to_stop_in(model, num_layers, wanted)
    early = replace(whole, layers=layers)
    return early if layers is not None and _agree(early, expected, first) else whole


def _layers_to_stop_in(model: nn.Module, num_layers: int, wanted: set[TensorSite]) -> nn.ModuleList | None:
    """Return the layers to stop in; None when a hidden state is no layer's input (the last has a final norm)."""
    numbers = [place.hidden_state for place in wanted if place.hidden_state is not None]
    found = find_layers(model, num_layers)
    if found is not None and all(number < num_layers for number in numbers):
        return found[1]
    return None if numbers else nn.ModuleList()


def _agree(early: ModelReader, expected: dict[str, torch.Tensor], inputs: Inputs) -> bool:
    """Return whether stopping early gives bitwise equal vectors for every real token."""
    mask = inputs.get("attention_mask")
    real_BT = slice(None) if mask is None else mask.bool()
    try:
        found = early.read(inputs)
    except (UserError, KeyError):  # other shapes, or places that are not reached
        return False
    return all(
        found[name].shape == x_BTD.shape and torch.equal(found[name][real_BT], x_BTD[real_BT])
        for name, x_BTD in expected.items()
    )


def run(model: Any, inputs: Inputs, **options: Any) -> Any:
    """Run the forward pass, without the mask where the model takes none."""
    taken = {name: x for name, x in inputs.items() if name != "attention_mask" or reads(model, name)}
    return model(**taken, **options)


@torch.no_grad()
def read_whole(model: Any, wanted: set[TensorSite], inputs: Inputs) -> dict[TensorSite, torch.Tensor]:
    """Read all places in a full forward pass.

    Raises UserError when the model has too few hidden states, or a module is not run exactly once.
    """
    modules = {place for place in wanted if place.hidden_state is None}
    calls: dict[TensorSite, int] = dict.fromkeys(modules, 0)
    found: dict[TensorSite, torch.Tensor] = {}

    def keep(place: TensorSite, x: torch.Tensor) -> None:
        calls[place] += 1
        found[place] = x

    with ExitStack() as hooks:
        for place in modules:
            _hook(hooks, model.get_submodule(place.module), place, keep, is_input=place.is_input)
        output = run(model, inputs, output_hidden_states=len(modules) < len(wanted))
    for place, times in calls.items():
        if times != 1:
            raise UserError(f"sites: the model runs {place.module} {times} times for a text; choose another module")
    states = getattr(output, "hidden_states", None) or ()
    for place in wanted - modules:
        assert place.hidden_state is not None
        if place.hidden_state >= len(states):
            raise UserError(
                f"sites: hidden_state {place.hidden_state}, but the model gives {len(states)} hidden states"
            )
        found[place] = states[place.hidden_state]
    return found


@torch.no_grad()
def read_early(
    model: Any, layers: nn.ModuleList, wanted: set[TensorSite], inputs: Inputs
) -> dict[TensorSite, torch.Tensor]:
    """Read hidden states as inputs of layers, and modules' tensors; ends the forward pass when all are read."""
    found: dict[TensorSite, torch.Tensor] = {}

    def keep(place: TensorSite, x: torch.Tensor) -> None:
        found[place] = x
        if len(found) == len(wanted):
            raise _AllFoundError

    with ExitStack() as hooks:
        for place in wanted:
            at_layer = place.hidden_state is not None
            module = model.get_submodule(place.module) if place.hidden_state is None else layers[place.hidden_state]
            _hook(hooks, module, place, keep, is_input=at_layer or place.is_input)
        with suppress(_AllFoundError):
            run(model, inputs)
    return found


def _hook(hooks: ExitStack, module: nn.Module, place: TensorSite, keep: Keep, *, is_input: bool) -> None:
    """Hook `keep` to the module's first input or output, copied: a later module may modify it in place."""

    def read_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(place, _first_tensor((*args, kwargs.get("hidden_states"), *kwargs.values()), place).clone())

    def read_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        keep(place, _first_tensor(output, place).clone())

    if is_input:
        handle = module.register_forward_pre_hook(read_input, with_kwargs=True)
    else:
        handle = module.register_forward_hook(read_output)
    hooks.callback(handle.remove)


def _first_tensor(values: Any, place: TensorSite) -> torch.Tensor:
    if isinstance(values, torch.Tensor):
        return values
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, torch.Tensor):
            return value
    raise UserError(f"sites: the {place.label} holds no tensor; choose another module")


class _AllFoundError(Exception):
    """Ends a forward pass early."""
