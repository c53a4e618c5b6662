"""Rate at which rows are generated, beside reading them from a local disk and the training step that takes them.

    python -m benchmarks.synthetic                  the 16k form: 16,384 features, width 768, step of 4,096 latents
    python -m benchmarks.synthetic --name synthsaebench-1k --latents 1024

Each is one thread of one process; processor time, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory

import numpy as np
import torch

from lexray.cluster.commands.step_timer import StepTimer
from lexray.storage.manifest import Manifest, load_manifest
from lexray.storage.reader import open_dataset
from lexray.storage.store import Store
from lexray.storage.synthetic.dataset import SITE
from lexray.storage.synthetic.rows import RowGenerator
from lexray.storage.synthetic_url import CHUNK_ROWS, parse
from lexray.storage.writer import DatasetWriter
from lexray.training.config import DataConfig
from lexray.training.dictionaries import dictionary_config


def main() -> None:
    """Print rows/s of each and ratios to the generator's."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--name", default="synthsaebench-16k")
    arguments.add_argument("--chunks", type=int, default=8)
    arguments.add_argument("--latents", type=int, default=4096)
    arguments.add_argument("--target-l0", type=float, default=25)
    arguments.add_argument("--steps", type=int, default=10)
    args = arguments.parse_args()
    torch.set_num_threads(1)
    rows = args.chunks * CHUNK_ROWS
    store = Store.at(f"synthetic://{args.name}?rows={max(rows, 100_000)}")
    began = time.process_time()
    manifest = load_manifest(store)
    print(f"{store.url}: opened in {time.process_time() - began:.1f} s of one core")
    generator = RowGenerator(parse(store.url))
    firing = rows_per_s(generator.firing, args.chunks)
    generated = rows_per_s(generator.chunk, args.chunks)
    print(f"generated        {generated:10,.0f} rows/s a core, of which firing alone {firing:,.0f}")
    with TemporaryDirectory() as folder:
        reader = open_dataset(*stored(generator, args.chunks, Store.at(folder)))
        read = rows_per_s(lambda number: reader.read_chunk(number, SITE), args.chunks)
    print(f"read from disk   {read:10,.0f} rows/s a core, {read / generated:.1f} x as many (page cache, checksummed)")
    for architecture in ("topk", "batch_topk"):
        trained = step(store, manifest, architecture, args)
        ratio = generated / trained
        print(f"{architecture:16} {trained:10,.0f} rows/s trained by a core; a core generates for {ratio:.1f} of them")


def rows_per_s(make: Callable[[int], object], chunks: int) -> float:
    """Return rows per second of processor time, after one chunk for warmup."""
    make(0)
    began = time.process_time()
    for number in range(chunks):
        make(number)
    return chunks * CHUNK_ROWS / (time.process_time() - began)


def stored(generator: RowGenerator, chunks: int, store: Store) -> tuple[Store, Manifest]:
    """Write the same rows as a dataset."""
    writer = DatasetWriter(
        store=store, sites={SITE: generator.dataset.parameters.width}, dtype="float32", chunk_rows=CHUNK_ROWS
    )
    for number in range(chunks):
        columns = {"token_id": 0, "position": 0, "document": number}
        values = {name: np.full(CHUNK_ROWS, value) for name, value in columns.items()}
        writer.add({SITE: torch.from_numpy(generator.chunk(number))}, values)
    return store, writer.close()


def step(store: Store, manifest: Manifest, architecture: str, args: argparse.Namespace) -> float:
    """Return the rows that steps of the training loop take per second of processor time, on rows in memory."""
    options = {"architecture": architecture, "width": args.latents, "target_l0": args.target_l0}
    data = DataConfig(url=store.url, dataset_id=manifest.id, inputs=(SITE,), batch_rows=1024, held_out=0.05)
    timer = StepTimer(data, dictionary_config(options), manifest, device=torch.device("cpu"))
    timer.step()
    began = time.process_time()
    for _ in range(args.steps):
        timer.step()
    return args.steps * data.batch_rows / (time.process_time() - began)


if __name__ == "__main__":
    main()
