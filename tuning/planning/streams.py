"""The memory of a node's streams: what decides it for each trial, and whether a node has it. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from lexray.storage.manifest import Manifest
from lexray.storage.stream_memory import NodeMemory, StreamShape, check_memory, stream_memory, stream_shape
from lexray.tuning.placement.nodes import Node
from lexray.tuning.planning.row_counts import RowCounts
from lexray.tuning.trials import Trial


def shape_of(trial: Trial, manifest: Manifest, counts: RowCounts) -> StreamShape:
    """What decides the memory of a trial's streams."""
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
    """Workers that a node can have at once, at most."""
    fitting = max(node.workers(trial.footprint) for trial in trials)
    return max(1, min(fitting, sum(trial.footprint.workers for trial in trials)))


def refuse_streams(
    trials: Sequence[Trial], shapes: Sequence[StreamShape], nodes: Sequence[Node], object_store_bytes: Sequence[int]
) -> None:
    """Raise UserError when a node that may get workers has no room in its object store for their windows."""
    for node, store_bytes in zip(nodes, object_store_bytes, strict=True):
        if takes_workers(trials, node):
            wanted = stream_memory(shapes, consumers=most_workers(trials, node), object_store_bytes=store_bytes)
            machine = NodeMemory(int(node.memory_bytes) + store_bytes, None)
            check_memory(wanted, object_store_bytes=store_bytes, node=machine)
