"""Write checkpoints asynchronously: each rank writes its part, rank 0 the manifest once all parts exist.

No collectives: ranks synchronise through the store. A rank that dies or fails leaves no part, so the checkpoint stays
incomplete and the previous one is kept.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from lexray.storage.store import Store
from lexray.training.checkpoint.format import Part, checkpoint_folders, folder_of, step_of, write_manifest, write_part
from lexray.training.checkpoint.parts import Shard

log = logging.getLogger("lexray")

FAILURES_IN_A_ROW = 3
POLL_S = (0.02, 1.0)
"""Seconds between polls for the other ranks' parts: initial and maximum."""


@dataclass(kw_only=True)
class CheckpointWriter:
    """One rank's writer: at most one save in flight; `close` waits for the last one.

    A failed save logs a warning; `FAILURES_IN_A_ROW` consecutive ones end the training.
    """

    store: Store
    attempt: str
    """Identifier drawn at the start of the training, equal on every rank."""
    about: dict[str, Any]
    """Metadata of the tensors, for the manifest."""
    rank: int = 0
    ranks: int = 1
    keep: int = 2
    """Number of newest checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints at multiples of this many steps are kept permanently; 0 for none."""
    timeout_s: float = 600.0
    """Seconds that rank 0 waits for the other ranks' parts."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="checkpoint"))
    _under_way: Future[None] | None = None
    _failures: int = 0

    def save(self, step: int, tensors: Mapping[str, Shard]) -> None:
        """Start writing this rank's part in the background. The tensors must not change afterwards."""
        self._await()
        self._under_way = self._pool.submit(self._write, step, tensors)

    def close(self, patience_s: float | None = None) -> None:
        """Wait for the last save, at most `patience_s` seconds from its start for the other ranks' parts."""
        if patience_s is not None:
            self.timeout_s = min(self.timeout_s, patience_s)
        try:
            self._await()
        finally:
            self._pool.shutdown()

    def _write(self, step: int, tensors: Mapping[str, Shard]) -> None:
        folder = folder_of(step, self.attempt)
        part = write_part(self.store, folder, self.rank, tensors)
        if self.rank == 0:
            others = [self._part_of(folder, rank) for rank in range(1, self.ranks)]
            write_manifest(self.store, folder, step, [part, *others], self.about)
            self._let_go(step)

    def _part_of(self, folder: str, rank: int) -> Part:
        """Wait for another rank's part and return it. Raises TimeoutError naming the rank."""
        began, (pause_s, longest_s) = self.clock(), POLL_S
        while True:
            try:
                return Part.model_validate_json(self.store.read(f"{folder}/part-{rank:05d}.json"))
            except FileNotFoundError:
                if self.clock() - began > self.timeout_s:
                    raise TimeoutError(
                        f"{folder}: rank {rank} of {self.ranks} wrote no part within {self.timeout_s:g} s"
                    ) from None
            self.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)

    def _let_go(self, step: int) -> None:
        """Delete checkpoints that are no longer kept.

        Folders of later steps are left over from a previous attempt: had they been complete, training would have
        resumed from them.
        """
        folders = checkpoint_folders(self.store)
        newest = [folder for folder in folders if (step_of(folder) or 0) <= step][-self.keep :]
        for folder in folders:
            kept = folder in newest or ((step_of(folder) or 0) <= step and is_permanent(folder, self.keep_every))
            if not kept:
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


def is_permanent(folder: str, keep_every: int) -> bool:
    """Return whether a checkpoint is kept permanently."""
    step = step_of(folder)
    return bool(keep_every and step and step % keep_every == 0)


def delete_temporary(store: Store, keep_every: int) -> None:
    """Delete the checkpoints of a finished training that are not kept permanently."""
    for folder in checkpoint_folders(store):
        if not is_permanent(folder, keep_every):
            store.delete(folder)
    if not store.list_folders() and not store.list_files():
        store.delete("")
