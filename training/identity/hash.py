"""The identity of a configuration: a hash that new options, and changes of where and how it runs, leave alone.

`defaults.json` is frozen, one table per schema version: of `training` by block, of a `dictionary` by architecture (or
`all`), of `codes` by kind. Options of version 1 are always hashed, as the first versions of lexray did; one that a
configuration does not have counts with its default. Options of later versions are hashed where they differ from the
default that they were introduced with. So a new option with its default changes no id, and a changed default does
(`changed`, see `lexray.training.identity.versions`).
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("defaults.json")


@cache
def frozen_defaults() -> dict[str, Any]:
    """Return the tables by version."""
    table: dict[str, Any] = json.loads(TABLE.read_text())
    return table


def identity_hash(content: dict[str, Any]) -> str:
    """Return 8 hexadecimal digits for plain values: `dictionary`, further blocks, and numbers beside them."""
    content = json.loads(json.dumps(content), parse_float=_number)
    dictionary = content.pop("dictionary")
    name = dictionary["architecture"]
    versions = frozen_defaults()
    first = versions["1"]
    hashed = {
        block: _hashed(values, first["training"].get(block, {}), _later(versions, "training", block))
        if isinstance(values, dict)
        else values
        for block, values in content.items()
    }
    frozen = first["dictionary"].get(name)
    later = _later(versions, "dictionary", "all") | _later(versions, "dictionary", name)
    later |= _later(versions, "codes", dictionary.get("code", ""))
    if frozen is not None and "code" not in frozen:
        later["code"] = dictionary.get("code")  # it has one code alone
    hashed["dictionary"] = {"architecture": name, **_hashed(dictionary, frozen or {}, later)}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:8]


def _hashed(values: dict[str, Any], first: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Return the options that are hashed."""
    changed = {name: value for name, value in values.items() if name not in later or value != later[name]}
    return {**first, **changed}


def _later(versions: dict[str, Any], part: str, block: str) -> dict[str, Any]:
    """Return the defaults of options that came after version 1."""
    return {
        name: value
        for version, table in versions.items()
        if version != "1"
        for name, value in table.get(part, {}).get(block, {}).items()
    }


def _number(text: str) -> float:
    """Return 8.0 as 8: equal configurations have equal hashes."""
    value = float(text)
    return int(value) if value.is_integer() else value
