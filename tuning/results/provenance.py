"""Records the provenance of a sweep's dataset in the sweep's folder.

The dataset may be deleted or replaced later, when a reader needs to know what these dictionaries were trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lexray.storage.manifest import Manifest
from lexray.storage.store import Store
from lexray.tuning.folder_documents import DATASET, read_if_there

DATASET_FILE = "dataset.json"


def write_dataset(store: Store, url: str, manifest: Manifest) -> None:
    """Write `dataset.json` into a sweep's folder: the dataset's url, id, rows, sites and provenance."""
    sites = {
        name: {"width": site.width, "dtype": site.dtype, "source": site.source} for name, site in manifest.sites.items()
    }
    document = {
        "format": "lexray-dataset-of-a-sweep",
        "version": 1,
        "url": url,
        "id": manifest.id,
        "rows": manifest.rows,
        "sites": sites,
        "provenance": manifest.provenance,
    }
    store.write(DATASET_FILE, json.dumps(document, indent=1).encode())


def read_dataset(store: Store) -> dict[str, Any] | None:
    """Read `dataset.json`; None if there is none. Raises CorruptDataError."""
    return read_if_there(store, DATASET_FILE, DATASET, remedy="remove it to go on without it")


def told(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the displayed entries: rows, each site, and every value of the provenance by its path."""
    lines = [("rows", f"{document['rows']:,}")]
    for name, site in document["sites"].items():
        about = f", {site['source']}" if site["source"] else ""
        lines.append((f"site {name}", f"{site['width']} wide, {site['dtype']}{about}"))
    return lines + [(path, value) for path, value in _leaves(document["provenance"])]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the leaves by path; lists of plain values stay on one line."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{index}")
    elif value not in (None, "", []):
        yield path, value if isinstance(value, str) else json.dumps(value)
