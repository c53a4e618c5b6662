"""The version of lexray's defaults in a sweep file: what began under one version goes on under it."""

from __future__ import annotations

from typing import Any

import yaml

from lexray.storage.config_file import MAX_BYTES, Block, checked_block, mapping_of
from lexray.storage.documents import read_bounded
from lexray.storage.store import Store
from lexray.training.identity.versions import BEFORE_VERSIONS, NEWEST, changed_training_defaults
from lexray.tuning.file.sweep_file import SweepFile

SWEEP_FILE = "sweep.yaml"
"""The sweep file in a sweep's folder, as run."""


def with_defaults(sweep: SweepFile, text: str, folder: Store) -> tuple[SweepFile, str]:
    """Return the sweep and its text with the version that it names, that its folder began with, or the newest.

    Raises UserError naming the folder's sweep file where it cannot be read.
    """
    content = mapping_of(text, SWEEP_FILE)
    version = sweep.defaults or _begun_with(folder) or NEWEST
    blocks = {
        "data": _with_old(sweep.data, content.get("data"), changed_training_defaults(version, "data")),
        "training": _with_old(sweep.training, content.get("training"), changed_training_defaults(version, "optimizer")),
    }
    sweep = sweep.model_copy(update={"defaults": version, **blocks})
    return sweep, text if "defaults" in content else _with_version(text, content, version)


def _with_old(block: Block, given: Any, old: dict[str, Any]) -> Block:
    """Return the block with old defaults for the settings that the file does not give."""
    missing = {name: value for name, value in old.items() if name not in (given or {})}
    return checked_block(block, missing) if missing else block


def _begun_with(folder: Store) -> int | None:
    """Return the version that a sweep in the folder began with; None where there is none."""
    file = f"{folder.url}/{SWEEP_FILE}"
    try:
        text = read_bounded(folder, SWEEP_FILE, MAX_BYTES, file).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    begun = mapping_of(text, file)
    version = begun.get("defaults", BEFORE_VERSIONS)
    return version if type(version) is int and 1 <= version <= NEWEST else None


def _with_version(text: str, content: dict[Any, Any], version: int) -> str:
    """Return the text with a line for the version; rewritten where a line cannot be appended."""
    longer = f"{text.rstrip()}\n\ndefaults: {version} # version of lexray's defaults when this sweep began\n"
    wanted = {**content, "defaults": version}
    try:
        if yaml.safe_load(longer) == wanted:
            return longer
    except yaml.YAMLError:
        pass
    return yaml.safe_dump(wanted, sort_keys=False)
