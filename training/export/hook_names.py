"""TransformerLens' names of the places that a harvest reads, where its activations there are the same vectors.

A name sends every reader to that hook, so a wrong one is worse than none. Names are given for families whose layers
hand on the residual stream itself: not for BERT and its kin, which normalise it, and not behind the last layer's
hidden state, which most models have passed through a final norm. Where a model normalises what its attention or MLP
adds (gemma2, gemma3, olmo2), the hook is behind that norm and the module in front of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_ADD_PARTS_AS_THEY_ARE = frozenset((
    "gpt2", "gptj", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "phi", "phi3", "olmo",
))  # fmt: skip
_RESIDUAL = _ADD_PARTS_AS_THEY_ARE | {"mixtral", "gemma2", "gemma3_text", "olmo2"}
_SECOND_NORM_FEEDS_MLP = frozenset((
    "gpt2", "gpt_neo", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3",
))  # fmt: skip
"""Others share one norm between attention and MLP."""

_HOOKS: dict[str, tuple[str, frozenset[str]]] = {
    "residual_in": ("hook_resid_pre", _RESIDUAL),
    "residual_out": ("hook_resid_post", _RESIDUAL),
    "attention_out": ("hook_attn_out", _ADD_PARTS_AS_THEY_ARE),
    "mlp_out": ("hook_mlp_out", _ADD_PARTS_AS_THEY_ARE),
    "mlp_in": ("ln2.hook_normalized", _SECOND_NORM_FEEDS_MLP),
}
"""By role of a layer, the hook and the families in which both are the same."""


class HookPoint(NamedTuple):
    """A place of a model."""

    name: str
    """As TransformerLens calls it."""
    output_of: int | None
    """The layer, from 0, whose whole output it is; -1 for the embeddings, None for anything else."""


def hook_of(site: Mapping[str, Any], *, num_layers: int | None, family: str | None) -> HookPoint | None:
    """The hook of a site as a harvest file describes it (`hidden_state`, or `layer` and `read`); None without one.

    `family` is the model's type in Hugging Face's configuration. Datasets of older versions do not state it; of them
    only hidden states are named.
    """
    state, layer, role = site.get("hidden_state"), site.get("layer"), site.get("read") or "residual_out"
    if type(state) is int:
        is_inside = num_layers is not None and 0 <= state < num_layers
        return _residual(state - 1) if is_inside and (family is None or family in _RESIDUAL) else None
    if type(layer) is not int or layer < 0 or role not in _HOOKS:
        return None
    name, families = _HOOKS[role]
    if family not in families:
        return None
    return HookPoint(f"blocks.{layer}.{name}", layer if role == "residual_out" else None)


def _residual(layer: int) -> HookPoint:
    return HookPoint("blocks.0.hook_resid_pre" if layer < 0 else f"blocks.{layer}.hook_resid_post", layer)
