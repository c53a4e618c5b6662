"""The rows of a batch as a dictionary takes them, on the device where it computes."""

from __future__ import annotations

from collections.abc import Generator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lexray.storage.stream import Batch, BatchStream
from lexray.training.config import DataConfig
from lexray.training.dictionaries.base import RawRows


class ReadyBatch(NamedTuple):
    """This rank's rows of a global batch, where they are needed."""

    rows: RawRows
    total_rows: int
    """Rows of the global batch, over all ranks."""
    row_ids: np.ndarray
    """Numbers of this rank's rows in the dataset (b)."""


class CopiedBatch(NamedTuple):
    """A batch that is on its way to a GPU."""

    batch: ReadyBatch
    arrived: torch.cuda.Event


def raw_rows(batch: Batch, data: DataConfig, device: torch.device | str = "cpu") -> RawRows:
    """The rows of a batch as a dictionary takes them: its input sites side by side, and its output site."""
    x_BD = _side_by_side(batch, data.inputs).to(device)
    return RawRows(x_BD, _side_by_side(batch, data.outputs).to(device) if data.outputs else x_BD)


def batches_on(device: torch.device, stream: BatchStream, data: DataConfig, steps: range) -> Generator[ReadyBatch]:
    """The batches of these steps; while the caller trains on one, a thread makes and copies the next."""
    if device.type == "cuda":
        yield from _batches_on_gpu(device, stream, data, steps)
    else:
        yield from stream.batches(
            steps, lambda batch: ReadyBatch(raw_rows(batch, data), batch.total_rows, batch.row_ids)
        )


def _batches_on_gpu(device: torch.device, stream: BatchStream, data: DataConfig, steps: range) -> Generator[ReadyBatch]:
    """Copied from pinned memory on a CUDA stream of their own, beside the computation."""
    copying = torch.cuda.Stream(device)

    def copy(batch: Batch) -> CopiedBatch:
        x_BD, y_BD = raw_rows(batch, data)
        with torch.cuda.stream(copying):  # which also makes its device this thread's
            x = x_BD.pin_memory().to(device, non_blocking=True)
            y = x if y_BD is x_BD else y_BD.pin_memory().to(device, non_blocking=True)
            return CopiedBatch(ReadyBatch(RawRows(x, y), batch.total_rows, batch.row_ids), copying.record_event())

    for batch, arrived in stream.batches(steps, copy):
        computing = torch.cuda.current_stream(device)
        computing.wait_event(arrived)
        for rows in batch.rows:
            rows.record_stream(computing)  # its memory is not given to another copy before it was used
        yield batch


def _side_by_side(batch: Batch, sites: tuple[str, ...]) -> Tensor:
    parts = [batch.vectors[site] for site in sites]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
