"""Where a dictionary came from, in the words of the formats: model, layer, hook point, what it was trained with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a saved dictionary's config says of its making; None where it does not."""

    architecture: str
    sites: tuple[str, ...] = ()
    """Names of the sites read, then of those reconstructed where these are others."""
    model: str | None = None
    layer: int | None = None
    """Number of the layer, from 0, whose output the read site is."""
    context_length: int | None = None
    l0: float | None = None
    lr: float | None = None
    steps: int | None = None

    hook_name: str | None = None
    """TransformerLens' name of the read site, or the dataset's name of it where that is not known."""


def origin_of(content: dict[str, Any]) -> Origin:
    """The origin of a saved dictionary, given its `config.json`."""
    sites, training = content.get("sites") or {}, content.get("training") or {}
    read = [site.get("name") for site in sites.get("inputs", [])]
    written = [site.get("name") for site in sites.get("outputs", [])]
    provenance = (content.get("data") or {}).get("provenance") or {}
    settings = provenance.get("settings") or {}
    imported = ((content.get("imported") or {}).get("config") or {}).get("metadata") or {}
    layer = _layer(provenance, read[0]) if read else None
    return Origin(
        architecture=content["dictionary"]["architecture"],
        sites=tuple(name for name in dict.fromkeys([*read, *written]) if name),
        model=settings.get("model") or imported.get("model_name"),
        layer=layer,
        hook_name=imported.get("hook_name") or _hook_name(layer) or (read[0] if read else None),
        context_length=settings.get("context_length"),
        l0=(content.get("held_out") or {}).get("l0"),
        lr=(training.get("optimizer") or {}).get("lr"),
        steps=_steps(training),
    )


def _hook_name(layer: int | None) -> str | None:
    if layer is None:
        return None
    return "blocks.0.hook_resid_pre" if layer < 0 else f"blocks.{layer}.hook_resid_post"


def _layer(provenance: dict[str, Any], site: str) -> int | None:
    """Hidden state n is what layer n - 1 gives; behind the last one, models differ in a norm that follows it."""
    settings = provenance.get("settings") or {}
    hidden_state = ((settings.get("sites") or {}).get(site) or {}).get("hidden_state")
    num_layers = (provenance.get("model") or {}).get("num_layers")
    if hidden_state is None or num_layers is None or hidden_state >= num_layers:
        return None
    return int(hidden_state) - 1


def _steps(training: dict[str, Any]) -> int | None:
    rows, batch_rows = training.get("rows"), (training.get("data") or {}).get("batch_rows")
    return rows // batch_rows if rows and batch_rows else None
