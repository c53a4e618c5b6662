"""Other libraries' ways to give shuffled batches of the same rows, with the settings that serve them best here.

Batches are (4096, 768) tensors. Their loaders run in this process or in two others, whichever is faster for them is
for the table to say.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.stream_data import SITE, WIDTH
from benchmarks.stream_readers import BATCH_ROWS, Place


class MappedRows(Dataset[torch.Tensor]):
    """Rows of safetensors files, mapped into memory; read one by one, or a batch at once."""

    def __init__(self, folder: Path) -> None:
        self._parts = [_mapped(file) for file in sorted(folder.glob("*.safetensors"))]
        self._ends = np.cumsum([len(rows) for rows in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> torch.Tensor:
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[number][index - (int(self._ends[number - 1]) if number else 0)]


class MappedBatches(MappedRows):
    """The same; a batch is gathered file by file."""

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        wanted = torch.as_tensor(indices)
        batch = torch.empty(len(wanted), WIDTH, dtype=torch.bfloat16)
        numbers = torch.from_numpy(np.searchsorted(self._ends, wanted.numpy(), side="right"))
        for number in numbers.unique().tolist():
            here = (numbers == number).nonzero().squeeze(1)
            begin = int(self._ends[number - 1]) if number else 0
            batch[here] = self._parts[number].index_select(0, wanted[here] - begin)
        return batch


def _mapped(file: Path) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(SITE)


class TorchLoader:
    """`DataLoader(shuffle=True)` over mapped safetensors files."""

    def __init__(self, place: Place, workers: int, batched: bool) -> None:
        self._place, self._workers, self._batched = place, workers, batched
        self._loader: DataLoader[torch.Tensor] | None = None

    def prepare(self) -> None:
        if self._loader is not None and not self._place.cold:
            return
        self._loader = None  # what is mapped cannot be forgotten
        self._place.prepare()
        folder = Path(self._place.url)
        common: dict[str, Any] = {"batch_size": BATCH_ROWS, "shuffle": True, "num_workers": self._workers}
        common |= {"persistent_workers": self._workers > 0, "drop_last": True}
        if self._batched:
            self._loader = DataLoader(MappedBatches(folder), collate_fn=_as_it_is, **common)
        else:
            self._loader = DataLoader(MappedRows(folder), **common)

    def epoch(self, number: int) -> int:
        assert self._loader is not None
        return _count(self._loader)


def _as_it_is(batch: Any) -> Any:
    return batch


class Mosaic:
    """mosaicml-streaming: `StreamingDataset(shuffle=True)`; from S3 with an empty cache for every epoch."""

    def __init__(self, place: Place, workers: int) -> None:
        self._place, self._workers = place, workers
        self._remote = place.endpoint is not None
        self._cache: str | None = None
        self._loader: Any = None
        if self._remote:
            import os

            os.environ["S3_ENDPOINT_URL"] = place.endpoint or ""

    def prepare(self) -> None:
        if self._loader is not None and not self._remote and not self._place.cold:
            return
        streaming = import_streaming()
        self._loader = None
        if self._cache is not None:
            shutil.rmtree(self._cache)
        if self._remote:
            self._cache = tempfile.mkdtemp(prefix="mds-")
            where = {"remote": self._place.url, "local": self._cache}
        else:
            self._place.prepare()
            where = {"local": self._place.url}
        dataset = streaming.StreamingDataset(**where, shuffle=True, batch_size=BATCH_ROWS)
        self._loader = DataLoader(
            dataset,
            batch_size=BATCH_ROWS,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            collate_fn=_stack,
            drop_last=True,
        )

    def epoch(self, number: int) -> int:
        return _count(self._loader)


def _stack(samples: list[dict[str, np.ndarray]]) -> torch.Tensor:
    # One copy instead of a tensor for each row, as the default would have it.
    return torch.from_numpy(np.stack([sample[SITE] for sample in samples])).view(torch.bfloat16)


class LitData:
    """litdata: `StreamingDataset(shuffle=True)`; from S3 with an empty cache for every epoch."""

    def __init__(self, place: Place, workers: int) -> None:
        self._place, self._workers = place, workers
        self._cache: str | None = None
        self._loader: Any = None

    def prepare(self) -> None:
        import litdata
        from litdata.streaming import downloader

        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = True  # its client refuses a server without TLS
        remote = self._place.endpoint is not None
        if self._loader is not None and not remote and not self._place.cold:
            return
        self._loader = None
        if self._cache is not None:
            shutil.rmtree(self._cache, ignore_errors=True)
        self._cache = tempfile.mkdtemp(prefix="litdata-")
        options = {"endpoint_url": self._place.endpoint} if remote else None
        if not remote:
            self._place.prepare()
        dataset = litdata.StreamingDataset(
            self._place.url, cache_dir=self._cache, shuffle=True, storage_options=options, drop_last=True
        )
        self._loader = litdata.StreamingDataLoader(dataset, batch_size=BATCH_ROWS, num_workers=self._workers)

    def epoch(self, number: int) -> int:
        return _count(batch.view(torch.bfloat16) for batch in self._loader)


def _count(batches: Iterable[torch.Tensor]) -> int:
    rows = 0
    for batch in batches:
        assert batch.shape[1:] == (WIDTH,), batch.shape
        assert batch.dtype == torch.bfloat16, batch.dtype
        rows += len(batch)
    return rows


def import_streaming() -> ModuleType:
    """mosaicml-streaming, which imports torchvision for datasets of pictures that are not used here.

    torchvision has to fit torch to the build; beside a torch for CPUs, pip finds one for GPUs, which does not load.
    """
    try:
        import streaming
    except ImportError:
        import transformers  # noqa: F401 - looks for torchvision itself

        for name, member in (
            ("", ""),
            (".datasets", "VisionDataset"),
            (".transforms", ""),
            (".transforms.functional", ""),
        ):
            module = ModuleType(f"torchvision{name}")
            if member:
                setattr(module, member, object)
            sys.modules[module.__name__] = module
        sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]
        import streaming
    return streaming
