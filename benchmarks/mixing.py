"""How well batches are mixed: of a row in a batch, how many others of its document are in that batch too?

A full shuffle of N rows puts (m - 1)(B - 1) / (N - 1) other rows of a document of m rows into the batch of B rows
that one of them is in. A stream that reads whole chunks puts more of them there. Printed for several shapes: the
expectation, and what the stream's own order does to a dataset laid out as `lexray harvest` lays it out.

    python -m benchmarks.mixing
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lexray.storage.harvest.plan import deal_pieces, row_places
from lexray.storage.order import EpochOrder, WindowKey


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A dataset and its stream."""

    rows: int
    """Of the dataset (N)."""
    document_rows: int
    """Of every document (m); a document is one piece of text that goes through the model."""
    spread: bool = True
    """Whether documents are dealt to shards at random and the rows of a shard permuted, as harvests do."""
    shard_rows: int = 65_536
    chunk_rows: int = 1024
    chunks_per_window: int = 10
    lanes: int = 16
    batch_rows: int = 4096


def fully_shuffled(layout: Layout) -> float:
    """Expected other rows of a row's document in its batch, had all rows been shuffled."""
    return (layout.document_rows - 1) * (layout.batch_rows - 1) / (layout.rows - 1)


def expected(layout: Layout) -> float:
    """Expected other rows of a row's document in its batch, as the stream orders rows.

    Spread, a document lies evenly in one shard, so it is shown as often as its shard is: in the row's own chunk for
    sure, in any other chunk of the batch's windows with the probability that a chunk is of that shard. Not spread, it
    lies within a chunk, and the batch takes of the chunk's window what it takes of the lane.
    """
    share = layout.batch_rows // layout.lanes
    window = layout.chunk_rows * layout.chunks_per_window
    others_of_window = min(share, window) - 1
    in_chunk = (layout.chunk_rows - 1) / (window - 1)
    if not layout.spread:
        return (layout.document_rows - 1) * others_of_window / (window - 1)
    chunks, of_shard = layout.rows / layout.chunk_rows, layout.shard_rows / layout.chunk_rows
    elsewhere = (of_shard - 1) / (chunks - 1)
    same_shard = others_of_window * (in_chunk + (1 - in_chunk) * elsewhere)
    same_shard += (layout.batch_rows - 1 - others_of_window) * elsewhere
    return (layout.document_rows - 1) * same_shard / (layout.shard_rows - 1)


def measured(layout: Layout, seed: int = 0) -> float:
    """The same, counted over an epoch of the stream's order."""
    document = stored_documents(layout)
    chunk_rows = np.diff([*range(0, layout.rows, layout.chunk_rows), layout.rows])
    order = EpochOrder(
        selected_rows=chunk_rows, seed=seed, epoch=0, lanes=layout.lanes, chunks_per_window=layout.chunks_per_window
    )
    lanes = np.stack([document[lane_rows(order, lane, layout.chunk_rows)] for lane in range(layout.lanes)])
    share = layout.batch_rows // layout.lanes
    steps = lanes.shape[1] // share
    others = 0
    for step in range(steps):
        counts = np.unique(lanes[:, step * share : (step + 1) * share], return_counts=True)[1]
        others += int((counts * (counts - 1)).sum())
    return others / (steps * layout.batch_rows)


def stored_documents(layout: Layout) -> np.ndarray:
    """The document of each row, in the order in which a harvest stores rows (N)."""
    lengths = np.full(layout.rows // layout.document_rows, layout.document_rows)
    stored = []
    for number, pieces in enumerate(deal_pieces(lengths, layout.shard_rows, spread=layout.spread)):
        document = np.repeat(pieces, layout.document_rows)
        shard = np.empty_like(document)
        shard[row_places(len(document), number, spread=layout.spread)] = document
        stored.append(shard)
    return np.concatenate(stored)


def lane_rows(order: EpochOrder, lane: int, chunk_rows: int) -> np.ndarray:
    """The lane's rows in order, by their number in the dataset (chunks that lie one after another, none short)."""
    rows = []
    for index, window in enumerate(order.windows(lane)):
        numbers = np.concatenate([np.arange(s.start, s.stop) + s.chunk * chunk_rows for s in window])
        rows.append(numbers[order.window_permutation(WindowKey(order.epoch, lane, index), len(numbers))])
    return np.concatenate(rows)


LAYOUTS = {
    "width 768, spread": Layout(rows=2**21, document_rows=128),
    "width 768, in order of the text": Layout(rows=2**21, document_rows=128, spread=False),
    "width 4096, spread": Layout(rows=2**21, document_rows=128, chunks_per_window=2),
    "width 4096, in order of the text": Layout(rows=2**21, document_rows=128, chunks_per_window=2, spread=False),
    "width 4096, spread, 64 MiB windows": Layout(rows=2**21, document_rows=128, chunks_per_window=8),
    "width 4096, spread, long documents": Layout(rows=2**21, document_rows=1024, chunks_per_window=2),
    "width 4096, spread, 64 lanes": Layout(rows=2**21, document_rows=128, chunks_per_window=2, lanes=64),
}
"""With windows of 16 MiB of bfloat16 rows, but where another size is named."""


def main() -> None:
    """Print the table."""
    print(f"{'':36} {'full shuffle':>12} {'expected':>9} {'measured':>9}")
    for name, layout in LAYOUTS.items():
        print(f"{name:36} {fully_shuffled(layout):12.3f} {expected(layout):9.3f} {measured(layout):9.3f}")


if __name__ == "__main__":
    main()
