"""Increase of a language model's loss when reconstructions replace its activations.

Next-token cross-entropy (CE, nats per token) of the model as it is, with the dictionary's sites replaced by their
reconstruction, and with them replaced by the dataset's mean or by zeros, which is the floor. Then

    loss recovered = (CE_ablated - CE_replaced) / (CE_ablated - CE_clean)

is 1 for a perfect reconstruction and, against the mean's floor, 0 for one that predicts the mean; it may be below 0.
The value depends strongly on the floor: zeros are often far out of distribution, so that almost anything recovers most
of that loss; prefer the mean's. KL is that of the model's next-token distributions, KL(clean || replaced), and

    KL recovered = 1 - KL_replaced / KL_ablated

Reconstructions are made from the clean activations of the same text. Tokens that the dictionary was not trained on,
special ones and those of outlying norm, keep their activations in every case. Every real token with a predecessor is
predicted, in all cases the same ones.

Shapes: B pieces of a batch, T tokens (padded on the right), D width of the input sites, O of the output sites, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexray.storage.errors import UserError
from lexray.storage.harvest.layout import Inputs, Layout, close
from lexray.storage.harvest.model_reader import choose_reader
from lexray.storage.harvest.site_choice import TensorSite, find_layers
from lexray.training.dictionaries.base import Dictionary

Change = Callable[[Tensor], Tensor]
"""Function applied to a site's activations (B, T, width of the site) in the forward pass."""

CLEAN, REPLACED, MEAN, ZERO = "clean", "replaced", "mean", "zero"


@dataclass(frozen=True, kw_only=True)
class Spliced:
    """A causal language model and the places in it that a dictionary reads and reconstructs."""

    model: Any
    """A `transformers` model with its head."""
    tower: Any
    """Its text model without the head, which contains the places."""
    num_layers: int
    inputs: tuple[TensorSite, ...]
    outputs: tuple[TensorSite, ...]

    def run(self, inputs: Inputs, changes: dict[TensorSite, Change]) -> Tensor:
        """Return logits (B, T, V) with the activations at these places changed.

        Raises UserError for a place that is not passed exactly once.
        """
        passed = dict.fromkeys(changes, 0)
        pieces, tokens = inputs["input_ids"].shape
        size = (pieces, tokens)

        def changing(place: TensorSite) -> Change:
            def change(x: Tensor) -> Tensor:
                passed[place] += 1
                layout = Layout.FLAT if x.dim() == 2 else Layout.PIECES_FIRST
                if not layout.fits(x, size):
                    raise UserError(f"sites: the {place.label} has not one vector for each token; give another module")
                return layout.restore(changes[place](layout.arrange(x, size)))

            return change

        with ExitStack() as hooks:
            for place in changes:
                module, is_input = self._module(place)
                hooks.callback(_hook(module, changing(place), is_input=is_input).remove)
            logits: Tensor = self.model(**inputs, use_cache=False).logits
        for place, times in passed.items():
            if times != 1:
                raise UserError(f"sites: the model passes the {place.label} {times} times for a text, expected once")
        return logits

    def activations(self, inputs: Inputs) -> tuple[Tensor, dict[TensorSite, Tensor]]:
        """Return the logits and the activations at every place (B, T, width)."""
        found: dict[TensorSite, Tensor] = {}

        def keeping(place: TensorSite) -> Change:
            def keep(x_BTD: Tensor) -> Tensor:
                found[place] = x_BTD.clone()
                return x_BTD

            return keep

        places = dict.fromkeys((*self.inputs, *self.outputs))
        return self.run(inputs, {place: keeping(place) for place in places}), found

    def check(self, inputs: Inputs) -> None:
        """Raise UserError unless places hold the tensors that a harvest reads, and attention is causal."""
        real_BT = inputs["attention_mask"].bool()
        names = {place.label: place for place in (*self.inputs, *self.outputs)}
        reader = choose_reader(self.tower, num_layers=self.num_layers, places=names, first=inputs)
        if not reader.pads:
            raise UserError("model: padding changes its vectors, so texts cannot be compared in batches")
        read = reader.read(inputs)
        logits_BTV, found = self.activations(inputs)
        for place, x_BTD in found.items():
            expected_BTD = read[place.label]
            if x_BTD.shape != expected_BTD.shape or not close(x_BTD[real_BT], expected_BTD[real_BT]):
                raise UserError(f"sites: the {place.label} is not what the model's layers pass on; give a module")
        ids_BT, last_B1 = inputs["input_ids"], inputs["attention_mask"].sum(1, keepdim=True) - 1
        other_BT = ids_BT.scatter(1, last_B1, (ids_BT.gather(1, last_B1) + 1) % logits_BTV.shape[2])
        difference_BTV = (self.run({**inputs, "input_ids": other_BT}, {}) - logits_BTV).abs()
        earlier_BT = real_BT & (torch.arange(ids_BT.shape[1], device=ids_BT.device) < last_B1)
        if earlier_BT.any() and difference_BTV[earlier_BT].max() > 1e-5 * logits_BTV[earlier_BT].abs().max():
            raise UserError("model: its tokens see later ones, so it predicts none; give a causal language model")

    def _module(self, place: TensorSite) -> tuple[nn.Module, bool]:
        """Return the module of a place, and whether the place is its input (else its output)."""
        base = self.tower
        if place.hidden_state is None:
            return base.get_submodule(place.module), place.is_input
        if place.hidden_state == self.num_layers:
            return base, False
        found = find_layers(base, self.num_layers)
        if found is None:
            raise UserError(f"sites: cannot tell the model's layers to find the {place.label}; give a module")
        return found[1][place.hidden_state], True


@dataclass(frozen=True, kw_only=True)
class PieceBatch:
    """Pieces of text as inputs of a model, and a mask of the tokens that may be replaced."""

    inputs: dict[str, Tensor]
    """`input_ids` and `attention_mask` (B, T)."""
    text_BT: Tensor
    """Mask of text tokens: neither padding nor special (B, T)."""


@torch.no_grad()
def recovered(
    spliced: Spliced, dictionary: Dictionary, batches: Iterable[PieceBatch], *, max_norms: tuple[float, ...] = ()
) -> dict[str, Any]:
    """Return CE and KL of the four cases and the shares recovered (see the module docstring).

    `max_norms`: for each input and then each output site, the norm above which rows keep their activations (empty: no
    limit). A share recovered is None where the floor is no worse than the unmodified model. Raises UserError when
    nothing is predicted, or the model cannot be spliced like this.
    """
    sums = {case: torch.zeros(2, dtype=torch.float64) for case in (CLEAN, REPLACED, MEAN, ZERO)}
    predicted = changed = 0
    for batch in batches:
        if not predicted:
            spliced.check(batch.inputs)
        clean_BTV, found = spliced.activations(batch.inputs)
        mask_BT = batch.text_BT & _usual(spliced, found, max_norms)
        for case, parts in _stand_ins(spliced, dictionary, found).items():
            changes = {place: _putting(part, mask_BT) for place, part in zip(spliced.outputs, parts, strict=True)}
            logits_BTV = spliced.run(batch.inputs, changes)
            sums[case] += _losses(logits_BTV, clean_BTV, batch.inputs)
        sums[CLEAN] += _losses(clean_BTV, clean_BTV, batch.inputs)
        predicted += int(batch.inputs["attention_mask"][:, 1:].sum())
        changed += int(mask_BT.sum())
    if not predicted:
        raise UserError("texts: no token has a predecessor, so nothing is predicted")
    means = {case: (total / predicted).tolist() for case, total in sums.items()}
    return {"tokens_predicted": predicted, "tokens_replaced": changed, **_summary(means)}


def _summary(means: dict[str, list[float]]) -> dict[str, Any]:
    """Return the summary of (CE, KL) of each case."""
    ce, kl = ({case: values[index] for case, values in means.items()} for index in (0, 1))
    shares: dict[str, Any] = {}
    for floor in (MEAN, ZERO):
        lost = ce[floor] - ce[CLEAN]
        shares[f"ce_recovered_{floor}"] = (ce[floor] - ce[REPLACED]) / lost if lost > 0 else None
        shares[f"kl_recovered_{floor}"] = 1 - kl[REPLACED] / kl[floor] if kl[floor] > 0 else None
    return {"ce": ce, "kl": {case: value for case, value in kl.items() if case != CLEAN}, **shares}


def _stand_ins(spliced: Spliced, dictionary: Dictionary, found: dict[TensorSite, Tensor]) -> dict[str, list[Tensor]]:
    """Return the replacement of each output site (B, T, width) in each case."""
    x_BTD = torch.cat([found[place].float() for place in spliced.inputs], 2)
    widths = [site.width for site in dictionary.sites.outputs]
    if x_BTD.shape[2] != dictionary.sites.input_width or [found[p].shape[2] for p in spliced.outputs] != widths:
        given = [found[place].shape[2] for place in (*spliced.inputs, *spliced.outputs)]
        raise UserError(f"model: its sites have widths {given}, the dictionary's {dictionary.sites.widths()}")
    y_BTO = dictionary(x_BTD.flatten(0, 1)).unflatten(0, x_BTD.shape[:2])
    mean_BTO = dictionary.output.mean_D.expand_as(y_BTO)
    cases = {REPLACED: y_BTO, MEAN: mean_BTO, ZERO: torch.zeros_like(y_BTO)}
    return {case: list(whole_BTO.split(widths, 2)) for case, whole_BTO in cases.items()}


def _putting(part_BTD: Tensor, mask_BT: Tensor) -> Change:
    return lambda x_BTD: torch.where(mask_BT[..., None], part_BTD.to(x_BTD.dtype), x_BTD)


def _usual(spliced: Spliced, found: dict[TensorSite, Tensor], max_norms: tuple[float, ...]) -> Tensor:
    """Return the mask of tokens whose vectors are within the maximum norm at every site (B, T)."""
    usual_BT = torch.ones(found[spliced.inputs[0]].shape[:2], dtype=torch.bool, device=found[spliced.inputs[0]].device)
    for place, limit in zip((*spliced.inputs, *spliced.outputs), max_norms, strict=False):
        usual_BT &= found[place].float().norm(dim=2) <= limit
    return usual_BT


def _losses(logits_BTV: Tensor, clean_BTV: Tensor, inputs: Inputs) -> Tensor:
    """Return the sums over predicted tokens of cross-entropy and of KL from the clean distribution (2), float64."""
    targets = inputs["attention_mask"][:, 1:].bool()
    log_q_NV = F.log_softmax(logits_BTV[:, :-1][targets].float(), 1)
    log_p_NV = F.log_softmax(clean_BTV[:, :-1][targets].float(), 1)
    ce = F.nll_loss(log_q_NV, inputs["input_ids"][:, 1:][targets], reduction="none").double().sum()
    kl = F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(1).double().sum()
    return torch.stack([ce, kl]).cpu()


def _hook(module: nn.Module, change: Change, *, is_input: bool) -> Any:
    """Register a hook that changes the first tensor of a module's input or output."""

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(isinstance(value, Tensor) for value in args):
            return _first_changed(args, change), kwargs
        if isinstance(kwargs.get("hidden_states"), Tensor):
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
        return args, _first_changed(kwargs, change)

    if is_input:
        return module.register_forward_pre_hook(on_input, with_kwargs=True)
    return module.register_forward_hook(lambda module, args, output: _first_changed(output, change))


def _first_changed(values: Any, change: Change) -> Any:
    """Return the values (a tensor, a tuple, or named values) with their first tensor changed."""
    if isinstance(values, Tensor):
        return change(values)
    named = list(values.items() if isinstance(values, dict) else enumerate(values))
    name, tensor = next((name, value) for name, value in named if isinstance(value, Tensor))
    if isinstance(values, dict):
        values[name] = change(tensor)
        return values
    return (*values[:name], change(tensor), *values[name + 1 :])
