"""Determine the layout of a model's vectors for a batch of texts, and try the layers that sites name by number.

The layout is measured, since shapes alone are ambiguous.

Some modules return (tokens, pieces, width), some (pieces x tokens, width), some vectors of a few tokens only, in their
own order. A single text is unambiguous, so a batch of two texts is compared with each of them alone. That also shows
whether padding changes a model's vectors (FNet has no mask, ConvBERT's convolutions reach into it): then only texts of
one length are batched.

Legend of shapes: B pieces of a batch, T tokens (padded), D width, N tokens of one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from lexray.storage.errors import UserError
from lexray.storage.harvest.site_choice import TensorSite, find_layers, role_error

Inputs = Mapping[str, torch.Tensor]
"""Keyword arguments of a model: `input_ids` and `attention_mask` (B, T), or `pixel_values`."""
Read = Callable[[Inputs], dict[TensorSite, torch.Tensor]]
"""Runs the model and returns the tensor at each place, in the model's layout."""
ReadPlaces = Callable[[set[TensorSite]], dict[TensorSite, torch.Tensor]]
"""Runs the whole model on a text and returns the tensors at these places."""


class Layout(Enum):
    """Layout of the vectors of a batch; the value is the shape."""

    PIECES_FIRST = "(pieces, tokens, width)"
    TOKENS_FIRST = "(tokens, pieces, width)"
    FLAT = "(pieces x tokens, width)"

    def fits(self, x: torch.Tensor, size: tuple[int, int]) -> bool:
        """Return whether a tensor can have this layout for `size` = (B, T)."""
        pieces, tokens = size
        expected = {
            Layout.PIECES_FIRST: (pieces, tokens),
            Layout.TOKENS_FIRST: (tokens, pieces),
            Layout.FLAT: (pieces * tokens,),
        }
        return x.dim() == len(expected[self]) + 1 and x.shape[:-1] == expected[self]

    def arrange(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Rearrange the vectors to (B, T, D)."""
        if self is Layout.TOKENS_FIRST:
            return x.transpose(0, 1)
        return x.unflatten(0, size) if self is Layout.FLAT else x

    def restore(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Invert `arrange`."""
        if self is Layout.TOKENS_FIRST:
            return x_BTD.transpose(0, 1)
        return x_BTD.flatten(0, 1) if self is Layout.FLAT else x_BTD


@dataclass(frozen=True)
class Layouts:
    """Layouts of a model's text vectors, by place."""

    of: dict[TensorSite, Layout]
    pads: bool
    """Whether texts of different lengths may be batched: padding changes no vector."""


def measure_layouts(
    read: Read, places: Mapping[str, TensorSite], first: Inputs, *, pad_id: int = 0, batched: bool = True
) -> Layouts:
    """Measure layouts: run the longest piece of the batch `first` and another text alone and together, and compare.

    The other text is a prefix of the piece, or, where padding changes vectors, the same tokens reversed. With `batched`
    false pieces are never batched. Raises UserError for a place without exactly one vector per token, or whose vectors
    depend on the other texts of a batch.
    """
    long_N = longest_piece(first)["input_ids"][0]
    long_N = long_N.repeat(2) if len(long_N) == 1 else long_N
    if not batched:
        return Layouts(_compare(read, places, [long_N], pad_id), pads=False)
    # With as many pieces as tokens the order of the two would be ambiguous.
    more = [long_N] if len(long_N) == 2 else []
    try:
        return Layouts(_compare(read, places, [long_N, long_N[: len(long_N) // 2], *more], pad_id), pads=True)
    except _DependsOnBatchError:
        pass
    try:
        return Layouts(_compare(read, places, [long_N, long_N.flip(0), *more], pad_id), pads=False)
    except _DependsOnBatchError as error:
        raise UserError(
            f"{error} depend on the other texts of a batch; write batch_tokens: 1 to run each piece alone, "
            "or choose another site"
        ) from error


class _DependsOnBatchError(Exception):
    """Batched texts have other vectors than single ones; the message names the place."""


def _compare(
    read: Read, places: Mapping[str, TensorSite], texts: list[torch.Tensor], pad_id: int
) -> dict[TensorSite, Layout]:
    alone = [read(pad_texts([text_N], pad_id)) for text_N in texts[:2]]
    both, size = read(pad_texts(texts, pad_id)), (len(texts), len(texts[0]))
    return {
        place: _choose(name, place, [found[place] for found in alone], both[place], size)
        for name, place in places.items()
    }


def longest_piece(inputs: Inputs) -> Inputs:
    """Return the piece of a batch with the most tokens, alone and without padding; images stay batched."""
    if "input_ids" not in inputs:
        return inputs
    longest = int(inputs["attention_mask"].sum(1).argmax())
    ids_N = inputs["input_ids"][longest][inputs["attention_mask"][longest].bool()]
    return pad_texts([ids_N], 0)


def pad_texts(texts: list[torch.Tensor], pad_id: int) -> dict[str, torch.Tensor]:
    """Batch texts of token ids (N each) as inputs, padded on the right: `input_ids` and `attention_mask` (B, T)."""
    ids = pad_sequence(texts, batch_first=True, padding_value=pad_id)
    mask = pad_sequence([torch.ones_like(text_N) for text_N in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


def _choose(
    name: str, place: TensorSite, alone: list[torch.Tensor], both: torch.Tensor, size: tuple[int, int]
) -> Layout:
    """Return the layout in which vectors of two batched texts, `size` = (B, T), equal those of each alone."""
    fitting = [layout for layout in Layout if layout.fits(both, size)]
    for layout in fitting:
        rows = [x.reshape(-1, x.shape[-1]) for x in alone]
        both_BTD = layout.arrange(both, size)
        if all(_agree(x_TD[: len(x_ND)], x_ND) for x_TD, x_ND in zip(both_BTD, rows, strict=False)):
            return layout
    if fitting:
        raise _DependsOnBatchError(f"sites.{name}: vectors of the {place.label}")
    raise shape_error(name, place, both, size)


def _agree(x_ND: torch.Tensor, expected_ND: torch.Tensor) -> bool:
    """Return whether vectors are equal up to rounding, and to tokens that rounding routes to another expert."""
    if x_ND.shape != expected_ND.shape:
        return False
    tolerance, share = (1e-3, 0.02) if expected_ND.dtype == torch.float32 else (0.1, 0.25)
    distance_N = (x_ND.double() - expected_ND.double()).norm(dim=1)
    scale_N = expected_ND.double().norm(dim=1)
    return bool((distance_N > tolerance * (scale_N + scale_N.mean())).double().mean() <= share)


def shape_error(name: str, place: TensorSite, x: torch.Tensor, size: tuple[int, int]) -> UserError:
    """Return the error for the shape of a site's tensor for `size` = (B, T)."""
    pieces, tokens = size
    if x.dim() == 2 and len(x) not in (pieces, pieces * tokens):
        return UserError(
            f"sites.{name}: the {place.label} gives {len(x)} vectors for {pieces * tokens} tokens; "
            "choose another module (an expert sees only the tokens that are routed to it)"
        )
    if x.dim() != 3:
        return UserError(
            f"sites.{name}: the {place.label} has the shape {tuple(x.shape)}, expected (pieces, tokens, width)"
        )
    return UserError(
        f"sites.{name}: has {tuple(x.shape[:2])} vectors for (pieces, tokens) {size}; choose another module"
    )


def check_layers(model: nn.Module, num_layers: int, places: Mapping[str, TensorSite], read: ReadPlaces) -> None:
    """Raise UserError for a layer that does not read what the one before it gives, or the next one what it gives.

    Which list of modules is the stack of layers, and which part of a layer is its attention, is guessed from names and
    lengths. XLM keeps its attentions and MLPs in lists of their own, BLOOM's parts add the residual stream themselves;
    a wrong guess would be stored as rows of another place.

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
        # Vectors of one text in the order of its tokens, however they are laid out.
        found = {place: x.reshape(-1, x.shape[-1]) for place, x in read(wanted.union(*joints)).items()}
        if not all(torch.equal(found[one], found[other]) for one, other in joints):
            raise UserError(
                f"sites.{name}.layer: {path} does not read what the module before it gives, so {stack} may be no stack "
                "of layers; give a hidden_state or a module"
            )
        if place.parts is not None:
            attention, mlp = (found[TensorSite(None, part)] for part in place.parts)
            if not close(found[x_in] + attention + mlp, found[x_out]):
                output = "attention_out" if place.module == place.parts[0] else "mlp_out"
                raise role_error(name, "mlp_in" if place.is_input else output, model, path)


def close(x_ND: torch.Tensor, expected_ND: torch.Tensor) -> bool:
    """Whether vectors are equal but for rounding, altogether."""
    tolerance = 1e-3 if expected_ND.dtype == torch.float32 else 0.05
    if x_ND.shape != expected_ND.shape:
        return False
    distance = (x_ND.double() - expected_ND.double()).norm()
    return bool(distance <= tolerance * expected_ND.double().norm())
