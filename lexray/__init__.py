"""Train sweeps of sparse dictionaries on stored activations.

The four floors are folders of the repository that this package links to: `lexray.storage`, `lexray.training`,
`lexray.tuning` and `lexray.cluster`. `load_dictionary` and `load_manifest` are what notebooks mostly need.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lexray.storage.manifest import load_manifest
    from lexray.training.checkpoint.saved import load_dictionary

__all__ = ["load_dictionary", "load_manifest"]

_HOMES = {"load_dictionary": "lexray.training.checkpoint.saved", "load_manifest": "lexray.storage.manifest"}


def __getattr__(name: str) -> Any:
    """Import on first use: `import lexray` alone takes no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'lexray' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
