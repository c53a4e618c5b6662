"""Checkpoints: full tensors by name in a fresh prefix, a checksummed manifest last.

    checkpoints/step-000000200/weights.safetensors     parameters (fp32 masters) and buffers
    checkpoints/step-000000200/optimizer.safetensors   Adam's moments: `exp_avg.NAME`, `exp_avg_sq.NAME`
    checkpoints/step-000000200/manifest.json           step, sizes and checksums of the two

Together with the step that is the whole state of a training: the stream is a function of the step, so are the
schedules, and counters, thresholds and coefficients are buffers. A prefix without a valid manifest does not exist.
"""

from __future__ import annotations

import json
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from storage.errors import CorruptDataError
from storage.manifest import chunk_checksum
from storage.store import Store

log = logging.getLogger("lexray")

MANIFEST, VERSION = "manifest.json", 1
WEIGHTS, OPTIMIZER = "weights.safetensors", "optimizer.safetensors"
FAILURES_IN_A_ROW = 3


class Checkpoint(NamedTuple):
    """The state after `step` finished steps."""

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def write_checkpoint(store: Store, checkpoint: Checkpoint) -> None:
    """Write one checkpoint below `store`, replacing what an interrupted save left there."""
    folder = folder_of(checkpoint.step)
    store.delete(folder)
    files = {WEIGHTS: save(checkpoint.weights), OPTIMIZER: save(checkpoint.moments)}
    for name, data in files.items():
        store.write(f"{folder}/{name}", data)
    parts = {name: _size_and_checksum(data) for name, data in files.items()}
    manifest = {"version": VERSION, "step": checkpoint.step, "files": parts}
    store.write(f"{folder}/{MANIFEST}", json.dumps(manifest).encode())


def read_checkpoint(store: Store, folder: str) -> Checkpoint:
    """Raises CorruptDataError naming the file when the manifest or a part is missing or not as promised."""
    try:
        manifest = json.loads(_read(store, folder, MANIFEST))
        step, promised = manifest["step"], {name: manifest["files"][name] for name in (WEIGHTS, OPTIMIZER)}
        intact = manifest["version"] == VERSION and folder == folder_of(step)
    except (ValueError, KeyError, TypeError):
        intact = False
    if not intact:
        raise CorruptDataError(f"{folder}/{MANIFEST}: not the manifest of this checkpoint")
    data = {name: _read(store, folder, name) for name in promised}
    for name, part in data.items():
        if _size_and_checksum(part) != promised[name]:
            raise CorruptDataError(f"{folder}/{name}: {len(part)} bytes do not match the manifest's checksum")
    return Checkpoint(step, load(data[WEIGHTS]), load(data[OPTIMIZER]))


def newest_checkpoint(store: Store) -> Checkpoint | None:
    """The newest valid checkpoint, walking back over damaged ones (each is named in the log)."""
    for folder in reversed(store.list_folders()):
        try:
            return read_checkpoint(store, folder)
        except CorruptDataError as error:
            log.warning("checkpoint skipped: %s", error)
    return None


def folder_of(step: int) -> str:
    return f"step-{step:09d}"


def _size_and_checksum(data: bytes) -> dict[str, int | str]:
    return {"bytes": len(data), "xxh3": chunk_checksum(data)}


def _read(store: Store, folder: str, name: str) -> bytes:
    try:
        return store.read(f"{folder}/{name}")
    except FileNotFoundError as error:
        raise CorruptDataError(f"{folder}: incomplete, {name} is missing") from error


@dataclass(kw_only=True)
class CheckpointWriter:
    """Writes behind the training: one save under way at most, the last one awaited by `close`.

    A failed save is a warning; `FAILURES_IN_A_ROW` of them end the training.
    """

    store: Store
    keep: int = 2
    """Newest checkpoints that are kept."""
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint"))
    _under_way: Future[None] | None = None
    _failures: int = 0

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write. The tensors must not change afterwards."""
        self._await()
        self._under_way = self._pool.submit(self._write, checkpoint)

    def close(self) -> None:
        """Wait for the last save."""
        try:
            self._await()
        finally:
            self._pool.shutdown()

    def _write(self, checkpoint: Checkpoint) -> None:
        write_checkpoint(self.store, checkpoint)
        # Later steps are damaged leftovers of an attempt before this one: training would have resumed from them.
        folders = self.store.list_folders()
        kept = [folder for folder in folders if folder <= folder_of(checkpoint.step)][-self.keep :]
        for folder in folders:
            if folder not in kept:
                self.store.delete(folder)

    def _await(self) -> None:
        if self._under_way is None:
            return
        try:
            self._under_way.result()
            self._failures = 0
        except Exception as error:
            self._failures += 1
            log.warning("checkpoint not saved (%d in a row): %s", self._failures, error)
            if self._failures >= FAILURES_IN_A_ROW:
                raise
        finally:
            self._under_way = None
