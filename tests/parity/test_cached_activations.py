"""SAELens: activations that its own cache runner stored are the rows of the imported dataset, bit for bit."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cached_activations import write_cache
from datasets import Array2D, Features, Sequence, Value
from sae_lens.cache_activations_runner import CacheActivationsRunner

from lexray.storage.imports.rows import import_rows
from lexray.storage.imports.source import SourceFolder
from lexray.storage.imports.tables import TableFolder
from lexray.storage.reader import DatasetReader
from lexray.storage.store import Store

HOOK, CONTEXTS, POSITIONS, WIDTH = "blocks.0.hook_mlp_out", 4, 6, 5


def cache(folder, buffers, dtype):
    """SAELens' runner stores buffers of (activations, token ids); the model that would give them is left out."""
    runner = object.__new__(CacheActivationsRunner)
    runner.cfg = SimpleNamespace(hook_name=HOOK, n_seq_in_buffer=CONTEXTS, d_in=WIDTH)
    runner.context_size = POSITIONS
    activations = Array2D(shape=(POSITIONS, WIDTH), dtype=dtype)
    runner.features = Features({HOOK: activations, "token_ids": Sequence(Value(dtype="int32"), length=POSITIONS)})
    shards = folder / ".tmp_shards"
    shards.mkdir(parents=True)
    for number, buffer in enumerate(buffers):
        runner._create_shard(buffer).save_to_disk(str(shards / f"shard_{number:05d}"), num_shards=1)
    runner._consolidate_shards(shards, folder, copy_files=False)
    return folder


def whole(store, manifest, name):
    reader = DatasetReader(store, manifest)
    return np.concatenate([reader.read_chunk(chunk, name) for chunk in range(len(reader.chunks))])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_cache_of_sae_lens_is_imported_bit_for_bit(dtype, tmp_path):
    generator = torch.Generator().manual_seed(0)
    rows = CONTEXTS * POSITIONS
    activations = torch.randn(3 * rows, WIDTH, generator=generator).to(getattr(torch, dtype))
    token_ids = torch.randint(0, 900, (3 * rows,), generator=generator)
    source = cache(tmp_path / "in", zip(activations.split(rows), token_ids.split(rows), strict=True), dtype)
    store = Store.at(str(tmp_path / "out"))
    manifest = import_rows(TableFolder(SourceFolder(Store.at(str(source)))), store.url)
    assert (manifest.rows, manifest.sites[HOOK].dtype) == (3 * rows, dtype)
    assert np.array_equal(whole(store, manifest, HOOK), activations.numpy())
    assert np.array_equal(whole(store, manifest, "token_id"), token_ids.numpy())
    assert np.array_equal(whole(store, manifest, "document"), np.repeat(np.arange(3 * CONTEXTS), POSITIONS))


def test_the_folders_of_the_quick_tests_are_what_datasets_reads(tmp_path):
    from datasets import load_from_disk

    values = np.random.default_rng(0).normal(size=(10, POSITIONS, WIDTH)).astype(np.float32)
    token_ids = np.arange(10 * POSITIONS, dtype=np.int32).reshape(10, POSITIONS)
    read = load_from_disk(str(write_cache(tmp_path / "in", {HOOK: values}, token_ids))).with_format("numpy")
    assert np.array_equal(read[:][HOOK], values)
    assert np.array_equal(read[:]["token_ids"], token_ids)
