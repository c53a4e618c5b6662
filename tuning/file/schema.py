"""The JSON schema of a sweep file, with the options of every architecture: editors complete and check by it."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from lexray.training.dictionaries import ARCHITECTURES
from lexray.training.dictionaries.describe import options_of
from lexray.tuning.file.axes import TRIAL_AXES
from lexray.tuning.file.sweep_file import SweepFile


def sweep_schema() -> dict[str, Any]:
    """The schema of `SweepFile`; `options` and `axes` list what each architecture has."""
    schema = SweepFile.model_json_schema()
    options = {name: _options_schema(name) for name in ARCHITECTURES}
    every: dict[str, Any] = {name: found for made in options.values() for name, found in made["properties"].items()}
    shared = {name: found for name, found in every.items() if name not in ("width", "target_l0")}
    schema["properties"]["options"] |= {
        "properties": {**options, "all": {"type": "object", "properties": shared, "additionalProperties": False}},
        "additionalProperties": False,
    }
    axes = {**{name: {} for name in TRIAL_AXES}, **every, **_SITE_AXES, "architecture": {"enum": list(ARCHITECTURES)}}
    schema["properties"]["axes"] |= {
        "properties": {name: _one_or_more(found, ranges=name not in _NUMBERLESS) for name, found in axes.items()},
        "required": ["architecture", "target_l0"],
        "oneOf": [{"required": ["width"]}, {"required": ["expansion"]}],
        "additionalProperties": False,
    }
    for block in ("include", "exclude"):
        schema["properties"][block]["items"] |= {
            "properties": {name: {} for name in axes},
            "additionalProperties": False,
        }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lexray sweep", **schema}


_NAME: dict[str, Any] = {"type": "string"}
_SITE_AXES: dict[str, Any] = {
    "site": {
        "anyOf": [
            _NAME,
            {
                "type": "object",
                "properties": {"input": _NAME, "output": _NAME},
                "required": ["input", "output"],
                "additionalProperties": False,
            },
        ]
    },
    "output_site": _NAME,
    "sites": {"type": "array", "items": _NAME},
}
_NUMBERLESS = ("architecture", *_SITE_AXES)
"""Axes that have no ranges."""


def _options_schema(name: str) -> dict[str, Any]:
    made = ARCHITECTURES[name]
    configs: list[Any] = [made.Config, *(code.Config for code in made.codes)]
    found = {
        option: schema
        for config in configs
        for option, schema in TypeAdapter(config).json_schema()["properties"].items()
    }
    found["code"] = {"enum": made.kinds, "default": made.kinds[0]} if made.codes else {}
    properties = {
        option.name: {key: value for key, value in found[option.name].items() if key != "title"}
        | {"description": option.doc}
        for option in options_of(made)
    }
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _one_or_more(schema: dict[str, Any], *, ranges: bool) -> dict[str, Any]:
    """An axis is a list of values, or one value, or a range to draw from."""
    value = {key: part for key, part in schema.items() if key not in ("default", "description")}
    described = {"description": schema["description"]} if "description" in schema else {}
    drawn = [{"$ref": "#/$defs/Range"}] if ranges else []
    return {"anyOf": [value, {"type": "array", "items": value, "minItems": 1}, *drawn], **described}
