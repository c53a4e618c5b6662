"""A replica of the models that makes shards: it runs them over a task's pieces and writes the rows to the store.

A shard is a function of its task, the models and the harvest file alone. Vectors go directly to the store.
Legend of shapes: R rows, D width.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from lexray.storage.errors import UserError, one_line
from lexray.storage.harvest.harvest_file import HarvestFile
from lexray.storage.harvest.language_model import ModelFacts, inspect_model, load_image_processor, load_model
from lexray.storage.harvest.model_reader import ModelReader, choose_reader
from lexray.storage.harvest.pieces import TokenPieces
from lexray.storage.harvest.plan import ImagePieces, ShardTask, row_places
from lexray.storage.harvest.site_choice import find_place
from lexray.storage.harvest.token_rows import PatchRows, PooledRows, RowMaker, TokenRows
from lexray.storage.store import Store
from lexray.storage.writer import TORCH_DTYPES, ShardFormat, WrittenShard


@dataclass(frozen=True, kw_only=True)
class ReplicaSettings:
    """Settings of a replica, serialisable for another machine."""

    config: HarvestFile
    threads: int
    """CPU threads of the models; they affect the last bits of rows."""
    device: str
    """`cpu` or `cuda`."""
    first: TokenPieces | ImagePieces
    """First batch, on which the models are tried."""
    pad_id: int = 0
    dropped_ids: tuple[int, ...] = ()
    """Token ids that are not stored as rows."""


@dataclass(frozen=True, kw_only=True)
class ReplicaFacts:
    """Facts about the models that are known once they are loaded and tried."""

    widths: dict[str, int]
    """Width of each site."""
    sources: dict[str, str]
    """Description of the place at which each site was read."""
    compute_dtypes: dict[str, str]
    """Dtype in which each model computes."""
    device: str
    rows_per_image: int
    """Rows of an image; 0 for text."""


class StoppedError(Exception):
    """The harvest was stopped externally."""


class Replica:
    """Makes shards sequentially; while one is written another thread may compute the next."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._config = settings.config
        self._store = Store.at(settings.config.output, settings.config.storage)
        self._computing = threading.Lock()
        self._rows_done: dict[int, int] = {}
        self._stopped = threading.Event()

    def describe(self) -> ReplicaFacts:
        """Load the models and try them. Raises UserError."""
        with self._computing:
            readers = self._loaded.readers
            return ReplicaFacts(
                widths=self._loaded.widths,
                sources={name: self._source(name) for name in self._config.sites},
                compute_dtypes={field: str(r.model.dtype).removeprefix("torch.") for field, r in readers.items()},
                device=self._settings.device,
                rows_per_image=getattr(self._loaded.rows, "rows_per_image", 0),
            )

    def write(self, task: ShardTask) -> WrittenShard:
        """Make one shard. Raises UserError for values that cannot be stored, OSError for errors of the store."""
        try:
            with self._computing:
                vectors, columns = self._read(task)
            shard_format = ShardFormat(
                sites=self._loaded.widths, dtype=self._config.dtype, chunk_rows=self._config.chunk_rows
            )
            return shard_format.write(self._store, task.number, vectors, columns)
        finally:
            self._rows_done.pop(task.number, None)

    def rows_in_progress(self) -> int:
        """Return the number of rows computed for unfinished shards."""
        return sum(list(self._rows_done.values()))

    def stop(self) -> None:
        """Make `write` stop before its next batch."""
        self._stopped.set()

    @cached_property
    def _loaded(self) -> _Loaded:
        torch.set_num_threads(self._settings.threads)
        with _running(self._config):
            return _load(self._settings)

    def _source(self, name: str) -> str:
        choice = self._config.sites[name]
        label = next(reader.places[name].label for reader in self._loaded.readers.values() if name in reader.places)
        if choice.layer is not None:
            label = f"{choice.read or 'residual_out'} of layer {choice.layer} ({label})"
        return label if choice.model is None else f"{label}, model {choice.model}"

    def _read(self, task: ShardTask) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
        """Return the shard's rows as stored: per site (R, D), per column (R)."""
        loaded, config = self._loaded, self._config
        torch.set_num_threads(self._settings.threads)  # the setting is per thread
        layout = loaded.rows.layout(task)
        places = row_places(len(layout.pieces), task.number, spread=config.spread)
        ends = np.cumsum(np.bincount(layout.pieces, minlength=len(task.rows)))
        vectors = {
            name: torch.empty(len(places), width, dtype=TORCH_DTYPES[config.dtype])
            for name, width in loaded.widths.items()
        }
        for numbers in loaded.rows.batches(task.pieces, config.batch_tokens):
            if self._stopped.is_set():
                raise StoppedError
            counts = task.rows[numbers]
            rows = np.concatenate([np.arange(ends[n] - task.rows[n], ends[n]) for n in numbers])
            where = torch.from_numpy(places[rows])
            for name, x_RD in self._read_batch(task, numbers, counts, layout.tokens[rows]):
                vectors[name][where] = x_RD
            self._rows_done[task.number] = self._rows_done.get(task.number, 0) + len(rows)
        columns = {name: np.empty_like(column) for name, column in layout.columns.items()}
        for name, column in layout.columns.items():
            columns[name][places] = column
        return vectors, columns

    def _read_batch(
        self, task: ShardTask, numbers: np.ndarray, counts: np.ndarray, tokens: np.ndarray
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield per site the rows (R, D) of the pieces `numbers`, each with `counts` rows."""
        loaded = self._loaded
        pieces = np.repeat(np.arange(len(numbers)), counts)
        with _running(self._config):
            inputs = loaded.rows.inputs(task.pieces, numbers)
            for reader in loaded.readers.values():
                on_device = _to_device(inputs, reader.model)
                for name, x_BTD in reader.read(on_device).items():
                    yield name, _as_stored(self._config, name, loaded.rows.pick(x_BTD, on_device, pieces, tokens))


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    readers: dict[str, ModelReader]
    """Readers by the model's field in the harvest file."""
    rows: RowMaker
    widths: dict[str, int]


def _load(settings: ReplicaSettings) -> _Loaded:
    config, vision = settings.config, settings.config.images is not None
    readers: dict[str, ModelReader] = {}
    states: dict[str, torch.Tensor] = {}
    rows: RowMaker | None = None
    for field, name in config.named_models.items():
        facts = inspect_model(name, field=field, vision=vision)
        model = load_model(facts, compute_dtype=config.compute_dtype, attention=config.attention, vision=vision)
        model = model.to(settings.device)
        rows = rows or _choose_rows(settings, facts, model)
        first = np.arange(len(settings.first))
        inputs = rows.inputs(settings.first, first)
        sites = config.sites_of(field)
        places = {site: find_place(site, choice, model, facts.num_layers) for site, choice in sites.items()}
        on_device = _to_device(inputs, model)
        readers[field] = choose_reader(
            model,
            num_layers=facts.num_layers,
            places=places,
            first=on_device,
            pad_id=settings.pad_id,
            batched=config.batch_tokens > 1,
        )
        states |= readers[field].read(on_device)
    assert rows is not None
    rows = rows.fitted(inputs, states)
    if isinstance(rows, TokenRows):
        rows = replace(rows, pads=all(reader.pads for reader in readers.values()))
    widths = {site: states[site].shape[-1] for site in config.sites}
    return _Loaded(readers=readers, rows=rows, widths=widths)


def _choose_rows(settings: ReplicaSettings, facts: ModelFacts, model: Any) -> RowMaker:
    config, dropped_ids = settings.config, np.array(settings.dropped_ids, dtype=np.int32)
    if config.images is not None:
        size = model.config.patch_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return PatchRows(
            processor=load_image_processor(facts),
            patch_size=(height, width),
            keeps_special=config.special_tokens == "keep",
        )
    if config.rows == "text":
        return PooledRows(pad_id=settings.pad_id, dropped_ids=dropped_ids, pooling=config.pooling or "mean")
    return TokenRows(pad_id=settings.pad_id, dropped_ids=dropped_ids)


def _to_device(inputs: dict[str, torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """Move inputs to the model's device, pixels also to its dtype."""
    return {
        name: x.to(model.device, model.dtype) if x.is_floating_point() else x.to(model.device)
        for name, x in inputs.items()
    }


@contextmanager
def _running(config: HarvestFile) -> Iterator[None]:
    """Turn exceptions of a model that cannot run on the corpus into one-line user errors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"batch_tokens: {config.batch_tokens} tokens in one forward pass need more memory than the device has; "
            "lower it"
        ) from error
    except (RuntimeError, IndexError, TypeError) as error:
        reason = one_line(error)
        names = " and ".join(repr(name) for name in config.named_models.values())
        what = "text" if config.images is None else "images"
        raise UserError(f"model: {names} cannot be run on the {what} ({reason})") from error


def _as_stored(config: HarvestFile, name: str, x_RD: torch.Tensor) -> torch.Tensor:
    """Round the rows to the dataset's dtype. Raises UserError when a value is not finite, before or after."""
    stored = x_RD.to(TORCH_DTYPES[config.dtype]).cpu()
    if torch.isfinite(stored).all():
        return stored
    if not torch.isfinite(x_RD).all():
        raise UserError(f"sites.{name}: the model gives values that are not finite, computing in {x_RD.dtype}")
    largest = float(x_RD.abs().max())
    raise UserError(f"dtype: {config.dtype} cannot hold sites.{name}, which reaches {largest:,.0f}; use bfloat16")
