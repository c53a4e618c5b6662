"""Provenance of a dictionary in the formats' terms: model, layer, hook point, training data and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lexray.training.export.hook_names import HookPoint, hook_of


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Provenance in a saved dictionary's config; None where unknown."""

    architecture: str
    sites: tuple[str, ...] = ()
    """Names of the input sites, then of the output sites where these differ."""
    model: str | None = None
    layer: int | None = None
    """Index of the layer, from 0, whose output is the input site."""
    context_length: int | None = None
    l0: float | None = None
    lr: float | None = None
    steps: int | None = None

    hook_name: str | None = None
    """TransformerLens' name of the input site; None where it has none, or has another vector under it."""
    hook_name_out: str | None = None
    """The same for the output site, where it differs."""


def origin_of(content: dict[str, Any]) -> Origin:
    """Return the provenance of a saved dictionary, given its `config.json`."""
    sites, training = _part(content, "sites"), _part(content, "training")
    read, written = (_names(sites.get(kind)) for kind in ("inputs", "outputs"))
    provenance = _part(_part(content, "data"), "provenance")
    imported = _part(_part(_part(content, "imported"), "config"), "metadata")
    hook, hook_out = (_hook(provenance, names[0]) if names else None for names in (read, written))
    named_alike = not written or written == read
    return Origin(
        architecture=content["dictionary"]["architecture"],
        sites=tuple(dict.fromkeys([*read, *written])),
        model=_model(provenance, read) or imported.get("model_name"),
        layer=hook.output_of if hook is not None else None,
        hook_name=imported.get("hook_name") or (hook.name if hook is not None else None),
        hook_name_out=None if named_alike else imported.get("hook_name_out") or (hook_out.name if hook_out else None),
        context_length=_part(provenance, "settings").get("context_length"),
        l0=_part(content, "held_out").get("l0"),
        lr=_part(training, "optimizer").get("lr"),
        steps=_steps(training),
    )


def _part(content: dict[str, Any], name: str) -> dict[str, Any]:
    """Return an object inside a document; empty where it is not an object."""
    part = content.get(name)
    return part if isinstance(part, dict) else {}


def _names(sites: Any) -> list[str]:
    found = [site.get("name") for site in sites if isinstance(site, dict)] if isinstance(sites, list) else []
    return [name for name in found if isinstance(name, str) and name]


def _site(provenance: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the harvest file's description of a site."""
    return _part(_part(_part(provenance, "settings"), "sites"), name)


def _model(provenance: dict[str, Any], read: list[str]) -> Any:
    """Return the name or path of the model from which the first site was read."""
    settings = _part(provenance, "settings")
    if not read or not _part(settings, "models"):
        return settings.get("model")
    return _part(settings, "models").get(str(_site(provenance, read[0]).get("model")))


def _hook(provenance: dict[str, Any], name: str) -> HookPoint | None:
    """Return the hook of a site, from the harvest's record of its model."""
    site, types = _site(provenance, name), _part(_part(provenance, "run"), "model_types")
    model = site.get("model")
    facts = _part(provenance, "model") if model is None else _part(_part(provenance, "models"), str(model))
    num_layers, family = facts.get("num_layers"), types.get("model" if model is None else str(model))
    return hook_of(
        site,
        num_layers=num_layers if type(num_layers) is int else None,
        family=family if isinstance(family, str) else None,
    )


def _steps(training: dict[str, Any]) -> int | None:
    rows, batch_rows = training.get("rows"), _part(training, "data").get("batch_rows")
    return rows // batch_rows if type(rows) is int and type(batch_rows) is int and rows and batch_rows > 0 else None
