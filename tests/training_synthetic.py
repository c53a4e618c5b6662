"""Rows made of known sparse features, configurations to train on them, and a data axis of two threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from synthetic import write_rows
from torch import Tensor

from lexray.storage.manifest import Manifest
from lexray.storage.store import Store
from lexray.training.checkpoint.parts import MOMENTS
from lexray.training.config import DataConfig, EveryConfig, OptimizerConfig, TrainingConfig
from lexray.training.dictionaries import ARCHITECTURES, dictionary_config
from lexray.training.engines.engine import Engine
from lexray.training.mesh.axes import LOCAL_DATA, LOCAL_FEATURE, Axes
from lexray.training.mesh.communicator import CPU
from lexray.training.mesh.split_axes import SplitDataAxis, SplitFeatureAxis, SplitWorldAxis

BATCH_ROWS = 64
STEPS = 60
SMALL = {"width": 40, "target_l0": 3, "dead_after_rows": 256, "sample_rows": 512}
NEEDED = {
    "pca": {"width": 10},
    "kmeans": {"target_l0": 1},
    "nmf": {"signed_input": "split"},
    "group_max": {"width": 42},
}
"""Options without which an architecture cannot be made in this size."""


class Features(NamedTuple):
    """Rows whose features are known."""

    atoms: Tensor
    """Unit-norm features (num_features, width)."""
    rows: Tensor
    """(num_rows, width), float32."""
    present: Tensor
    """Which features each row is made of (num_rows, num_features), bool."""


def sparse_features(
    num_features: int, width: int, *, active: float, rows: int, noise: float = 0.01, shift: float = 1.0, seed: int = 101
) -> Features:
    """Rows that are sums of about `active` features with coefficients between 0.5 and 1.5, and some noise.

    `seed` must not be that of a dictionary: both draw unit vectors alike, and training would begin at its end.
    """
    generator = torch.Generator().manual_seed(seed)
    atoms = F.normalize(torch.randn(num_features, width, generator=generator), dim=1)
    present = torch.rand(rows, num_features, generator=generator) < active / num_features
    code = (0.5 + torch.rand(rows, num_features, generator=generator)) * present
    values = code @ atoms + shift + noise * torch.randn(rows, width, generator=generator)
    return Features(atoms, values, present)


def other_site(rows: Tensor) -> Tensor:
    """What a transcoder may make of rows: (num_rows, 3/4 of their width)."""
    width = rows.shape[1]
    mixing = torch.randn(width, 3 * width // 4, generator=torch.Generator().manual_seed(7)) / width**0.5
    return torch.relu(rows @ mixing) - 0.5


@dataclass(frozen=True)
class Dataset:
    """A dataset on this disk: `site`, made of features, and `other`, a linear map of it with a bend."""

    store: Store
    manifest: Manifest
    features: Features


def write_features(folder: Path | str, features: Features) -> Dataset:
    """Store rows as float32, in documents of 20."""
    written = write_rows(
        folder,
        len(features.rows),
        vectors={"site": features.rows, "other": other_site(features.rows)},
        dtype="float32",
        chunk_rows=64,
        rows_per_document=20,
    )
    return Dataset(written.store, written.manifest, features)


def small_dataset(folder: Path | str) -> Dataset:
    """3,200 rows of width 12 made of 24 features."""
    return write_features(folder, sparse_features(24, 12, active=3, rows=3200))


def sites_to_read(name: str) -> dict[str, tuple[str, ...]]:
    """`inputs` and `outputs` of a dictionary of this architecture."""
    kind = ARCHITECTURES[name].kind
    return {
        "inputs": ("site", "other") if kind == "crosscoder" else ("site",),
        "outputs": ("other",) if kind == "transcoder" else (),
    }


def small_config(dataset: Dataset, name: str, **changes: Any) -> TrainingConfig:
    """A training of `STEPS` steps; keyword arguments replace fields of the configuration, `dictionary` adds options."""
    options = {"architecture": name, **SMALL, **NEEDED.get(name, {}), **changes.pop("dictionary", {})}
    config = TrainingConfig(
        dictionary=dictionary_config(options),
        data=DataConfig(
            url=dataset.store.url,
            dataset_id=dataset.manifest.id,
            **sites_to_read(name),
            batch_rows=BATCH_ROWS,
            held_out=0.1,
            window_bytes=2**13,
        ),
        rows=STEPS * BATCH_ROWS,
        optimizer=OptimizerConfig(lr=3e-3),
        every=EveryConfig(log=5, evaluate=10, checkpoint=20, eval_rows=128),
    )
    return replace(config, **changes)


def moments_of(engine: Engine) -> dict[str, Tensor]:
    """Adam's moments by name, as they are now."""
    return {key.removeprefix(MOMENTS): moment.clone() for key, moment in engine.state() if key.startswith(MOMENTS)}


# Two ranks in one process -----------------------------------------------------------------------------------------


class Meeting:
    """Where two threads show each other their values."""

    def __init__(self, size: int = 2) -> None:
        self._barrier = threading.Barrier(size, timeout=30)
        self._values: list[Tensor] = [torch.empty(0)] * size

    def exchange(self, rank: int, value: Tensor) -> list[Tensor]:
        self._values[rank] = value
        self._barrier.wait()
        everyones = list(self._values)
        self._barrier.wait()
        return everyones


@dataclass(frozen=True)
class ThreadGroup:
    """Ranks that are threads of this process."""

    meeting: Meeting
    rank: int
    size: int
    device: torch.device = CPU

    def all_sum(self, values: Tensor) -> Tensor:
        return torch.stack(self.all_gather(values).unbind()).sum(0)

    def all_gather(self, values: Tensor) -> Tensor:
        return torch.stack(self.meeting.exchange(self.rank, values.detach()))


def row_axes(group: ThreadGroup) -> Axes:
    """Ranks that split the rows."""
    return Axes(SplitDataAxis(group), LOCAL_FEATURE, SplitWorldAxis(group))


def latent_axes(group: ThreadGroup) -> Axes:
    """Ranks that split the latents."""
    return Axes(LOCAL_DATA, SplitFeatureAxis(group), SplitWorldAxis(group))


def on_ranks(work: Callable[[int, Axes], Any], make: Callable[[ThreadGroup], Axes], size: int = 2) -> list[Any]:
    """What `work(rank, axes)` returns on each of some ranks that run at once."""
    meeting = Meeting(size)
    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(work, rank, make(ThreadGroup(meeting, rank, size))) for rank in range(size)]
        return [future.result() for future in futures]


def on_two_ranks(work: Callable[[int, Axes], Any]) -> list[Any]:
    """What `work(rank, axes)` returns on each of two ranks that split the rows."""
    return on_ranks(work, row_axes)
