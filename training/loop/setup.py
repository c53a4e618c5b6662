"""Everything that a training is made of when its first step begins, on this rank: new, or as a checkpoint left it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from lexray.storage.errors import UserError
from lexray.storage.selection import Part
from lexray.storage.store import Store
from lexray.storage.stream import BatchStream
from lexray.storage.windows import LocalWindows, StreamSpec, WindowReader, WindowSource
from lexray.training.checkpoint.initial import write_initial_atoms
from lexray.training.checkpoint.parts import ShardSpec
from lexray.training.checkpoint.resume import newest_state
from lexray.training.config import TrainingConfig
from lexray.training.engines.engine import Engine
from lexray.training.loop.build import build_dictionary, make_engine, sample_of
from lexray.training.mesh.liveness import exchange_identities
from lexray.training.mesh.mesh import Mesh

OpenStream = Callable[[StreamSpec], WindowSource]
"""Opens the windows of a stream, in this process or at the node's server."""


def read_locally(spec: StreamSpec) -> WindowSource:
    """Return windows read by this process."""
    return LocalWindows(WindowReader(spec))


class Setup(NamedTuple):
    """The parts of a training on one rank."""

    mesh: Mesh
    stream: BatchStream
    """Training rows."""
    validation: BatchStream
    """Rows that the training is evaluated on."""
    engine: Engine
    share: ShardSpec
    """Shards of the state on this rank."""
    start: int
    """Finished steps: 0, or those of the checkpoint."""


def set_up(config: TrainingConfig, store: Store, open_stream: OpenStream, mesh: Mesh, device: torch.device) -> Setup:
    """Build a training, from the newest valid checkpoint under `store` if there is one. Every rank calls it."""
    stream = open_part(config, "train", open_stream, mesh)
    validation = open_part(config, "validation", open_stream, mesh)
    dictionary = build_dictionary(config, stream.manifest, mesh.axes).to(device)
    share = ShardSpec(mesh.place, dictionary.split_names())
    state = newest_state(store.at_path("checkpoints"), share, mesh)
    start = state.step if state else 0
    exchange_identities(mesh, stream.batch(start).row_ids, device)
    if state is not None:
        dictionary.load_state_dict(state.weights)
    elif dictionary.needs_sample:
        dictionary.prepare(sample_of(config, stream, dictionary, device))
    if state is None and dictionary.atoms_from_data:
        write_initial_atoms(store, dictionary, is_first=mesh.place.rank == 0)
    engine = make_engine(dictionary, config, mesh)
    if state is not None:
        engine.restore(state)
    return Setup(mesh, stream, validation, engine, share, start)


def open_part(config: TrainingConfig, part: Part, open_stream: OpenStream, mesh: Mesh) -> BatchStream:
    """Return this rank's stream of a part of the dataset. Raises UserError when its url holds another dataset now."""
    spec = config.data.stream_spec(part)
    source = open_stream(spec)
    found = source.describe().manifest.id
    if found != config.data.dataset_id:
        raise UserError(
            f"data.url: {config.data.url} now holds dataset {found}, "
            f"the trial was configured for {config.data.dataset_id}"
        )
    return BatchStream(
        spec=spec,
        source=source,
        batch_rows=config.data.batch_rows,
        rank=mesh.place.data_index,
        num_ranks=mesh.place.data,
    )
