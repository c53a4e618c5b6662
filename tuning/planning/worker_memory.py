"""The memory of a trial's worker by component: formulas of `training.cost.memory`, plus the stream."""

from __future__ import annotations

import math
import resource
import sys
from dataclasses import dataclass

from lexray.storage.manifest import Manifest
from lexray.storage.stream_memory import StreamShape
from lexray.training.cost.memory import PROCESS_BYTES, needs, rank_memory
from lexray.tuning.trials import Trial


@dataclass(frozen=True, kw_only=True)
class WorkerMemory:
    """Peak bytes of the most demanding worker of a trial, and their components."""

    process: int
    """Python and the libraries."""
    weights: int
    masters: int
    moments: int
    gradients: int
    """Gradients and their buffers that persist between steps."""
    step: int
    """Activations, or gradients and other tensors of the backward pass, whichever is larger."""
    buffers: int
    """Counters, thresholds, sums."""
    batches: int
    """Batches prepared for coming steps."""
    windows: int
    """Windows mapped from the node's object store; workers in step share them."""
    host: int
    """Peak host memory without windows: at the start, in a step with an upload, or at the end."""
    device: int
    """Peak GPU memory; 0 without a GPU."""

    @property
    def resident(self) -> int:
        """Peak resident memory of the process, with the windows that it maps."""
        return self.host + self.windows


def worker_memory(trial: Trial, manifest: Manifest, shape: StreamShape, *, epochs: float) -> WorkerMemory:
    """Return the memory of the most demanding worker of a trial of `epochs` epochs."""
    # A small dataset has fewer windows than a worker may hold: those of two epochs at most, as one follows the other.
    lanes_share = shape.lanes / trial.config.data.lanes
    whole = shape.epoch_bytes * lanes_share
    windows = min(
        shape.mapped_bytes, int(whole * (min(2, math.ceil(epochs)) * shape.train_share + shape.held_out_share))
    )
    sites = trial.config.data.sites_in(manifest)
    held = rank_memory(trial.config, sites)
    wanted = needs(trial.config, sites, on_gpu=trial.footprint.on_gpu)
    return WorkerMemory(
        process=PROCESS_BYTES,
        weights=held.weights + held.gathered,
        masters=held.masters,
        moments=held.moments,
        gradients=held.gradient_parts + held.bucket,
        step=held.step,
        buffers=held.buffers,
        batches=shape.batch_bytes,
        windows=windows,
        host=wanted.host + shape.batch_bytes,
        device=wanted.device,
    )


def peak_resident_bytes() -> int:
    """Return the peak resident bytes of this process, including shared pages."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
