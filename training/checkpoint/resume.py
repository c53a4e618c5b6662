"""Which checkpoint a training goes on from: the newest one that every rank of the mesh can read."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import torch.distributed as dist

from lexray.storage.errors import CorruptDataError
from lexray.storage.store import Store
from lexray.training.checkpoint.format import Checkpoint, checkpoint_folders, open_checkpoint
from lexray.training.checkpoint.parts import ShardSpec
from lexray.training.mesh.mesh import Mesh

log = logging.getLogger("lexray")


def newest_state(store: Store, share: ShardSpec, mesh: Mesh) -> Checkpoint | None:
    """This rank's part of the newest checkpoint that all ranks find valid; what is skipped is named in the log.

    Every rank calls it. Rank 0 says which folders there are; a folder of which one rank cannot read its part is skipped
    by all.
    """
    folders = from_rank_0(checkpoint_folders(store) if mesh.place.rank == 0 else [], mesh)
    for folder in reversed(folders):
        found: Checkpoint | None = None
        try:
            found = open_checkpoint(store, folder).read(share)
        except CorruptDataError as error:
            log.warning("checkpoint skipped: %s", error)
        if not mesh.axes.pairs.count(int(found is None)):
            return found
    return None


def new_attempt(mesh: Mesh) -> str:
    """A name for this attempt at a training, the same on every rank and like none before."""
    attempt: str = from_rank_0(secrets.token_hex(4), mesh)
    return attempt


def from_rank_0(value: Any, mesh: Mesh) -> Any:
    """Rank 0's value, on every rank."""
    if mesh.place.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]
