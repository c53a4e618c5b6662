"""The same rows as a lexray dataset, plain safetensors files, MDS shards and litdata chunks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from lexray.storage.store import Store
from lexray.storage.writer import ShardFormat, write_manifest

WIDTH = 768
ROW_BYTES = 2 * WIDTH
SHARD_ROWS = 16_384
SITE = "x"


def part(number: int) -> torch.Tensor:
    """Rows of shard `number` (SHARD_ROWS, WIDTH), bfloat16."""
    return torch.randn(SHARD_ROWS, WIDTH, generator=torch.Generator().manual_seed(number)).bfloat16()


def write_lexray(folder: Path, shards: int) -> None:
    store, shard_format = Store.at(str(folder)), ShardFormat(sites={SITE: WIDTH})
    row = np.arange(SHARD_ROWS)
    columns = {"token_id": row % 1000, "position": row % 128}
    written = [
        shard_format.write(store, n, {SITE: part(n)}, {**columns, "document": (row + n * SHARD_ROWS) // 128})
        for n in range(shards)
    ]
    write_manifest(store, shard_format, written, sources={}, provenance={})


def write_safetensors(folder: Path, shards: int) -> None:
    folder.mkdir()
    for number in range(shards):
        save_file({SITE: part(number)}, folder / f"{number:06}.safetensors")


def write_mds(folder: Path, shards: int) -> None:
    """64 MB shards, the library's default."""
    from benchmarks.stream_peers import import_streaming

    writer = import_streaming().MDSWriter
    with writer(out=str(folder), columns={SITE: f"ndarray:uint16:{WIDTH}"}) as out:
        for number in range(shards):
            for row in part(number).view(torch.uint16).numpy():
                out.write({SITE: row})


def write_litdata(folder: Path, shards: int) -> None:
    """64 MB chunks, the library's default."""
    import litdata

    litdata.optimize(
        fn=_rows_of,
        inputs=list(range(shards)),
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        verbose=False,
    )


def _rows_of(number: int):
    yield from part(number).view(torch.int16)  # it cannot store bfloat16


def evict(folder: Path) -> None:
    """Ask the system to forget what it keeps of these files in memory."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)  # what is not written yet is not forgotten
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
