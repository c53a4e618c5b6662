"""Places of sites: as a harvest file specifies them, and resolved in a loaded model."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, model_validator
from torch import nn

from lexray.storage.config_file import FileModel
from lexray.storage.errors import UserError

Role = Literal["residual_in", "residual_out", "mlp_in", "mlp_out", "attention_out"]
_ROLES = get_args(Role)

# Names of a layer's parts: (attention before the residual addition; first and last module of the MLP).
# Families whose layers compute `out = in + attention + mlp` need no line: that is measured (see check_layers).
_PARTS: dict[str, tuple[str, str, str]] = {
    **dict.fromkeys(("gpt2", "gptj", "gpt_neo", "codegen"), ("attn", "mlp", "mlp")),
    **dict.fromkeys(
        (
            "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "olmo", "olmo2",
            "smollm3", "stablelm", "starcoder2", "cohere",
            "clip_vision_model", "clip_text_model", "siglip_vision_model",
        ),
        ("self_attn", "mlp", "mlp"),
    ),
    "gpt_neox": ("attention", "mlp", "mlp"),
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "deberta-v2"),
        ("attention.output.dense", "intermediate", "output.dense"),
    ),
    "distilbert": ("attention", "ffn", "ffn"),
    **dict.fromkeys(("bart", "mbart", "plbart", "marian", "opt"), ("self_attn", "fc1", "fc2")),
    **dict.fromkeys(("dinov2", "dinov2_with_registers", "dinov3_vit", "vit"), ("attention", "mlp", "mlp")),
}  # fmt: skip
_ATTENTIONS = ("attention.output.dense", "self_attn", "attn", "attention", "self_attention", "layer.0.SelfAttention")
_MLPS = (
    ("intermediate", "output.dense"),
    *((name, name) for name in ("mlp", "feed_forward", "block_sparse_moe", "ffn", "layer.1.DenseReluDense")),
    ("fc1", "fc2"),
)
# Names of the parts of a ViT layer in transformers before 5.
_OLDER_PARTS = {"vit": ("attention", "intermediate", "output.dense")}


class SiteChoice(FileModel):
    """Place of a site in the model: exactly one of hidden_state, module and layer."""

    model: str | None = None
    """Name of one of the file's `models`."""
    hidden_state: int | None = Field(default=None, ge=0)
    """The residual stream after this many layers, as Hugging Face's `hidden_states`: 0 is the embeddings."""
    module: str | None = Field(default=None, min_length=1)
    """Path of a module (`encoder.layer.3.output.dense`), whose first tensor is read."""
    layer: int | None = Field(default=None, ge=0)
    """Index of a layer, from 0; `read` selects its vectors."""
    read: Literal["input", "output"] | Role | None = None
    """Tensor that is read. Module: `output` (the default) or `input`. Layer: a role, `residual_out` by default."""

    @model_validator(mode="after")
    def _one_place(self) -> SiteChoice:
        places = [name for name in ("hidden_state", "module", "layer") if getattr(self, name) is not None]
        if len(places) != 1:
            raise ValueError("give one of hidden_state (a number), module (a path) and layer (a number)")
        allowed = {"hidden_state": (), "module": ("input", "output"), "layer": _ROLES}[places[0]]
        if self.read is not None and self.read not in allowed:
            known = f"; it takes {', '.join(allowed)}" if allowed else ", which is read as it is"
            raise ValueError(f"read: {self.read} has no meaning with {places[0]}{known}")
        return self


@dataclass(frozen=True)
class TensorSite:
    """A tensor in a forward pass."""

    hidden_state: int | None = None
    """Index of a hidden state that the model returns; None for a module's tensor."""
    module: str = ""
    is_input: bool = False
    layer: int | None = None
    """Index of its layer, where the site specifies a layer."""
    parts: tuple[str, str] | None = None
    """Modules of that layer that are, by name, its attention and its MLP; to be verified by their outputs."""

    @property
    def label(self) -> str:
        if self.hidden_state is not None:
            return f"hidden state after layer {self.hidden_state}" if self.hidden_state else "embeddings"
        return f"{'input' if self.is_input else 'output'} of {self.module}"


def find_place(name: str, choice: SiteChoice, model: nn.Module, num_layers: int) -> TensorSite:
    """Return the place of the site `name`. Raises UserError listing the alternatives."""
    check_numbers(name, choice, num_layers)
    if choice.hidden_state is not None:
        return TensorSite(choice.hidden_state)
    if choice.module is not None:
        _check_path(f"sites.{name}.module", choice.module, model)
        return TensorSite(None, choice.module, choice.read == "input")
    assert choice.layer is not None
    return _find_role(name, choice.layer, choice.read or "residual_out", model, num_layers)


def check_numbers(name: str, choice: SiteChoice, num_layers: int) -> None:
    """Raise UserError for a layer or hidden state that a model of `num_layers` layers does not have."""
    for field, number, largest in (
        ("hidden_state", choice.hidden_state, num_layers),
        ("layer", choice.layer, num_layers - 1),
    ):
        if number is not None and number > largest:
            raise UserError(f"sites.{name}.{field}: {number}, but the model has {num_layers} layers (0 to {largest})")


def _check_path(field: str, path: str, model: nn.Module) -> None:
    known = [name for name, _ in model.named_modules() if name]
    if path in known:
        return
    close = difflib.get_close_matches(path, known, n=3, cutoff=0.5) or known[:5]
    raise UserError(f"{field}: the model has no module {path!r}; there are {', '.join(close)}, ...")


def find_layers(model: nn.Module, num_layers: int) -> tuple[str, nn.ModuleList] | None:
    """Return path and modules of the outermost list of `num_layers`, which in nearly all models is the layer stack."""
    lists = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == num_layers]
    return min(lists, key=lambda found: found[0].count("."), default=None)


def _find_role(name: str, layer: int, role: str, model: nn.Module, num_layers: int) -> TensorSite:
    found = find_layers(model, num_layers)
    if found is None:
        some = ", ".join([path for path, _ in model.named_modules() if path][:12])
        raise UserError(f"sites.{name}.layer: cannot tell the model's layers; give a module: {some}, ...")
    path = f"{found[0]}.{layer}"
    if role in ("residual_in", "residual_out"):
        return TensorSite(None, path, role == "residual_in", layer)
    kind = getattr(getattr(model, "config", None), "model_type", "")
    inside = {part for part, _ in found[1][layer].named_modules() if part}
    known = next((parts for parts in (_PARTS.get(kind), _OLDER_PARTS.get(kind)) if parts and inside >= {*parts}), None)
    parts = known or _parts_by_name(inside)
    if parts is None:
        raise role_error(name, role, model, path)
    part = {"attention_out": parts[0], "mlp_in": parts[1], "mlp_out": parts[2]}[role]
    tried = None if known else (f"{path}.{parts[0]}", f"{path}.{parts[2]}")
    return TensorSite(None, f"{path}.{part}", role == "mlp_in", layer, tried)


def _parts_by_name(inside: set[str]) -> tuple[str, str, str] | None:
    attention = next((part for part in _ATTENTIONS if part in inside), None)
    mlp = next((parts for parts in _MLPS if inside >= {*parts}), None)
    return None if attention is None or mlp is None else (attention, *mlp)


def role_error(name: str, role: str, model: nn.Module, path: str) -> UserError:
    """Return the error for a role that is unknown in the layer at `path`."""
    kind = getattr(getattr(model, "config", None), "model_type", "")
    inside = sorted(part for part, _ in model.get_submodule(path).named_modules() if part)
    return UserError(
        f"sites.{name}.read: {role} is not known for models of type {kind!r}; give a module of the layer: "
        + ", ".join(f"{path}.{part}" for part in inside)
    )
