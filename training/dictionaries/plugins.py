"""Plugins: Python files named by the environment that register architectures from outside the package.

Processes that receive lexray's sources (Ray workers, submitted jobs) receive the plugin files with them, in `SHIPPED`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from lexray.storage.errors import UserError

PLUGINS = "LEXRAY_PLUGINS"
"""Comma-separated Python files to import. Their code is run, so set it only to trusted files."""
SHIPPED = Path(__file__).with_name("shipped")
"""Folder of the plugin files in a shipped package; installations do not have it."""


def plugin_files() -> list[Path]:
    """Return the files to import, shipped ones first. Raises UserError where two have the same name."""
    named = [Path(name.strip()) for name in os.environ.get(PLUGINS, "").split(",") if name.strip()]
    found = {path.name: path for path in sorted(SHIPPED.glob("*.py"))}
    for path in named:
        if path.suffix != ".py":
            raise UserError(f"{PLUGINS}: {path} is no file of Python; its name must end in .py")
        if path.name in found and found[path.name].parent not in (path.parent, SHIPPED):
            raise UserError(f"{PLUGINS}: {found[path.name]} and {path} have the same name; rename one")
        found.setdefault(path.name, path)
    return list(found.values())


def load_plugins() -> None:
    """Import the files, in order. Raises UserError naming the one that cannot be imported."""
    for path in plugin_files():
        try:
            _import_file(path)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{PLUGINS}: {path}: cannot be imported ({type(error).__name__}: {error})") from error


def _import_file(path: Path) -> None:
    name = f"lexray_plugin_{path.stem}"  # the same on every machine: configurations are pickled by it
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    spec.loader.exec_module(module)
