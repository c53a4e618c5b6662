"""Stores a synthetic dataset and trains dictionaries on it as on any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.storage.manifest import MANIFEST, Manifest, load_manifest
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.writer import DatasetWriter
from lexray.training.checkpoint.initial import read_initial_atoms
from lexray.training.checkpoint.saved import CONFIG, load_dictionary, read_dictionary_config
from lexray.training.config import TrainingConfig
from lexray.training.dictionaries.learned import LearnedDictionary
from lexray.training.loop.build import build_dictionary, ensure_process_group, sample_of
from lexray.training.loop.setup import read_locally
from lexray.training.loop.trainer import Trainer
from lexray.tuning.ground_truth.worlds import World

SITE = "site"
ROWS_PER_DOCUMENT = 16
CHUNK_ROWS = 512


def store_world(world: World, store: Store, provenance: dict[str, object]) -> Manifest:
    """Write the rows as a dataset of one site, or reuse an existing one. Raises UserError if another is there."""
    if store.exists(MANIFEST):
        manifest = load_manifest(store)
        if manifest.provenance != provenance:
            raise UserError(
                f"output: {store.url} holds a world of other settings ({manifest.provenance}); choose another folder"
            )
        return manifest
    rows, width = world.rows_ND.shape
    writer = DatasetWriter(
        store=store, sites={SITE: width}, dtype="float32", chunk_rows=CHUNK_ROWS, provenance=dict(provenance)
    )
    row = np.arange(rows)
    columns = {
        "token_id": np.zeros(rows),
        "position": row % ROWS_PER_DOCUMENT,
        "document": row // ROWS_PER_DOCUMENT,
    }
    writer.add({SITE: world.rows_ND}, columns)
    return writer.close()


def train_once(config: TrainingConfig, folder: Store) -> None:
    """Train to the end and save the dictionary in `folder`, unless it exists already."""
    if folder.exists(f"dictionary/{CONFIG}"):
        return
    torch.set_num_threads(1)
    ensure_process_group()
    Trainer(config=config, store=folder, trial=config.trial).run()


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A trained dictionary with its codes and metrics."""

    atoms_FD: Tensor
    codes_NF: Tensor
    """Codes of rows that were not trained on."""
    held_out: dict[str, Any]
    """The trainer's own metrics on test rows."""


def learned(folder: Store, rows_ND: Tensor) -> Learned:
    """Load the dictionary that `train_once` saved, and encode raw rows with it."""
    store = folder.at_path("dictionary")
    dictionary = load_dictionary(store.url)
    assert isinstance(dictionary, LearnedDictionary)
    with torch.no_grad():
        codes_NF = dictionary.encode(rows_ND).dense()
        atoms_FD = dictionary.atoms_FD().clone()
    return Learned(atoms_FD=atoms_FD, codes_NF=codes_NF, held_out=read_dictionary_config(store)["held_out"])


def initial_atoms(config: TrainingConfig, folder: Store) -> Tensor:
    """Return the atoms (F, D) at the start of a training: those that it wrote into `folder`, or computed again."""
    spec = config.data.stream_spec("train")
    stream = BatchStream(spec=spec, source=read_locally(spec), batch_rows=config.data.batch_rows)
    dictionary = build_dictionary(config, stream.manifest)
    assert isinstance(dictionary, LearnedDictionary)
    if dictionary.atoms_from_data:
        written = read_initial_atoms(folder, (config.dictionary.width, dictionary.sites.output_width))
        if written is not None:
            return written
        dictionary.prepare(sample_of(config, stream, dictionary, torch.device("cpu")))
    return dictionary.atoms_FD().detach().clone()
