"""The memory of a node's streams: its shape for each trial, and whether a node has it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from lexray.storage.manifest import Manifest
from lexray.storage.stream_memory import NodeMemory, StreamShape, check_memory, stream_memory, stream_shape
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.row_counts import RowCounts
from lexray.tuning.trials import Trial


def shape_of(trial: Trial, manifest: Manifest, counts: RowCounts) -> StreamShape:
    """Return the shape of a trial's streams, which determines their memory."""
    data, train_rows = trial.config.data, counts.training(trial.config.data)
    return stream_shape(
        manifest,
        data.sites,
        window_bytes=data.window_bytes,
        lanes=data.lanes,
        batch_rows=data.batch_rows,
        workers=trial.config.mesh.row_parts(trial.config.dictionary),
        train_rows=train_rows,
        held_out_rows=max(counts.held_out(data)),  # one part is evaluated at a time
        epochs=trial.config.num_steps * data.batch_rows / train_rows,
    )


def takes_workers(trials: Sequence[Trial], node: Node) -> bool:
    """Return whether a worker of any trial fits on the node: a head without CPUs serves no windows."""
    return any(node.workers(trial.footprint) for trial in trials)


def most_workers(trials: Sequence[Trial], node: Node) -> int:
    """Return the maximum number of concurrent workers on a node."""
    fitting = max(node.workers(trial.footprint) for trial in trials)
    return max(1, min(fitting, sum(trial.footprint.workers for trial in trials)))


def refuse_streams(
    trials: Sequence[Trial], shapes: Sequence[StreamShape], nodes: Sequence[Node], object_store_bytes: Sequence[int]
) -> None:
    """Raise UserError if a usable node's object store is too small for its workers' windows."""
    for node, store_bytes in zip(nodes, object_store_bytes, strict=True):
        if takes_workers(trials, node):
            wanted = stream_memory(shapes, consumers=most_workers(trials, node), object_store_bytes=store_bytes)
            machine = NodeMemory(int(node.memory_bytes) + store_bytes, None)
            check_memory(wanted, object_store_bytes=store_bytes, node=machine)
