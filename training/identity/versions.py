"""Defaults by version: a sweep goes on with the defaults that it began with.

`defaults.json` says what each option's default was when it was introduced, and under `changed` of a later version what
it became. The classes have the newest ones.
"""

from __future__ import annotations

from typing import Any

from lexray.training.identity.hash import frozen_defaults

NEWEST = max(map(int, frozen_defaults()))
"""Version of the defaults that the classes have."""
BEFORE_VERSIONS = 2
"""Version of the defaults of sweeps that do not say theirs."""


def changed_dictionary_defaults(version: int, architecture: str, kind: str | None) -> dict[str, Any]:
    """Return the options of a dictionary and its code whose default has changed since, with that of `version`."""
    blocks = (("dictionary", "all"), ("dictionary", architecture), ("codes", kind or ""))
    return _changed_since(version, blocks)


def changed_training_defaults(version: int, block: str) -> dict[str, Any]:
    """Return the settings of a block (`data`, `optimizer`) whose default has changed since, with that of `version`."""
    return _changed_since(version, (("training", block),))


def _changed_since(version: int, blocks: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    then: dict[str, Any] = {}
    changed: set[str] = set()
    for number, table in sorted(frozen_defaults().items(), key=lambda item: int(item[0])):
        for part, block in blocks:
            new = table.get("changed", {}).get(part, {}).get(block, {})
            then |= table.get(part, {}).get(block, {})
            if int(number) <= version:
                then |= new
            else:
                changed |= new.keys()
    return {name: then[name] for name in changed}
