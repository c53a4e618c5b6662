"""Folders of vectors as other programs leave them, and what becomes of them when they are imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lexray.storage.errors import UserError
from lexray.storage.imports.rows import ImportOptions, SiteNames, import_rows
from lexray.storage.imports.source import SourceFolder
from lexray.storage.imports.table_files import is_tables
from lexray.storage.imports.tables import TableFolder
from lexray.storage.imports.tensors import TensorFolder
from lexray.storage.manifest import Manifest, load_manifest
from lexray.storage.reader import DatasetReader
from lexray.storage.store import Store

TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32, "float64": torch.float64}
Save = Callable[[torch.Tensor, Path], None]
NO_BFLOAT16 = {("npy", "bfloat16"), ("npz", "bfloat16")}
SAVE: dict[str, Save] = {
    "npy": lambda tensor, path: np.save(path, tensor.numpy()),
    "npz": lambda tensor, path: np.savez(path, x=tensor.numpy()),
    "pt": torch.save,
    "pth": torch.save,
    "safetensors": lambda tensor, path: save_file({"x": tensor}, path),
}


def random_rows(rows: int, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def folder_of(place: Path, files: dict[str, torch.Tensor]) -> Path:
    """One tensor in each file, by the suffix of its name."""
    for name, tensor in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        SAVE[name.rsplit(".", 1)[1]](tensor, place / name)
    return place


def imported(source: Path | str, output: Path, *sites: str, dtype: str | None = None, **options: Any) -> Manifest:
    """The manifest of an imported folder; `options` are those of `ImportOptions`."""
    folder = SourceFolder(Store.at(str(source)))
    reader = TableFolder if is_tables(folder) else TensorFolder
    rows = reader(folder, ImportOptions(names=SiteNames(wanted=sites), **options))
    return import_rows(rows, str(output), dtype=dtype)


def stored(output: Path, name: str) -> torch.Tensor:
    """A site or column of a dataset, whole."""
    store = Store.at(str(output))
    reader = DatasetReader(store, load_manifest(store))
    whole = torch.from_numpy(np.concatenate([reader.read_chunk(i, name) for i in range(len(reader.chunks))]))
    site = reader.manifest.sites.get(name)
    return whole.view(torch.bfloat16) if site is not None and site.dtype == "bfloat16" else whole


def refusal(source: Path | str, output: Path, *sites: str, **options: Any) -> str:
    """The one line that refuses an import, which leaves no file."""
    with pytest.raises(UserError) as caught:
        imported(source, output, *sites, **options)
    assert not [path for path in output.rglob("*") if path.is_file()]
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)
