"""k-means over a sample of the stream, the same on any number of ranks.

Lloyd's algorithm from rows drawn at random; a centroid that no row is nearest to is put on the row farthest from its
own. Shapes: b rows of a batch, D width, C centroids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lexray.storage.errors import UserError
from lexray.training.mesh.axes import DataAxis
from lexray.training.ops.sampling import largest_keys, row_hashes

ROUNDS = 15
CHUNK_ROWS = 4096


class Assignment(NamedTuple):
    """Rows and the centroid that each is nearest to."""

    sums_CD: Tensor
    counts_C: Tensor
    farthest: Tensor
    """Squared distance of the worst row, then the row (1 + D)."""


@torch.no_grad()
def kmeans(
    batches: Callable[[], Iterable[Tensor]],
    count: int,
    rows: DataAxis,
    seed: int,
    rounds: int = ROUNDS,
    typical_length: float = 1.0,
) -> Tensor:
    """Centroids (count, D) of all ranks' rows, whose scale is `typical_length`.

    Raises UserError when there are fewer rows than centroids.
    """
    centroids_CD = random_rows(batches, count, rows, seed)
    for _ in range(rounds):
        found = assign(batches(), centroids_CD, rows)
        means_CD = found.sums_CD / found.counts_C.clamp_min(1)[:, None]
        empty_C = found.counts_C == 0
        new_CD = torch.where(empty_C[:, None], centroids_CD, means_CD)
        if empty_C.any():
            new_CD[empty_C.nonzero()[0, 0]] = found.farthest[1:].to(new_CD.dtype)
        moved = float((new_CD - centroids_CD).norm())
        centroids_CD = new_CD
        if moved < 1e-6 * max(typical_length, float(centroids_CD.norm())):
            break
    return centroids_CD


def assign(batches: Iterable[Tensor], centroids_CD: Tensor, rows: DataAxis) -> Assignment:
    """Sums and numbers of the rows nearest to each centroid, over all ranks."""
    num_centroids, width = centroids_CD.shape
    sums = centroids_CD.new_zeros(num_centroids, width + 1, dtype=torch.float64)
    worst = centroids_CD.new_full((1 + width,), -1.0)
    for batch in batches:
        for x_bD in batch.to(centroids_CD.dtype).split(CHUNK_ROWS):
            distance_b, nearest_b = nearest(x_bD, centroids_CD)
            with_one = torch.cat([x_bD.double(), x_bD.new_ones(len(x_bD), 1, dtype=torch.float64)], 1)
            sums.index_add_(0, nearest_b, with_one)
            at = int(distance_b.argmax())
            if distance_b[at] > worst[0]:
                worst = torch.cat([distance_b[at].reshape(1), x_bD[at]])
    sums = rows.all_reduce(sums)
    everyones = rows.gather(worst[None])
    return Assignment(
        sums[:, :-1].to(centroids_CD.dtype), sums[:, -1].to(centroids_CD.dtype), everyones[everyones[:, 0].argmax()]
    )


def nearest(x_BD: Tensor, centroids_CD: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance to the nearest centroid, and which it is: (B), (B)."""
    scores_BC = centroids_CD.square().sum(1) - 2 * (x_BD @ centroids_CD.T)
    best = scores_BC.min(dim=1)
    return (best.values + x_BD.square().sum(1)).clamp_min(0), best.indices


def random_rows(batches: Callable[[], Iterable[Tensor]], count: int, rows: DataAxis, seed: int) -> Tensor:
    """`count` distinct rows of all ranks, drawn without replacement (count, D).

    The rows with the largest `row_hashes` win.
    """
    best: Tensor | None = None
    seen = 0
    for x_bD in batches():
        keyed = torch.cat([row_hashes(x_bD, seed)[:, None], x_bD.double()], 1)
        dtype = x_bD.dtype
        best = largest_keys(keyed if best is None else torch.cat([best, keyed]), count)
        seen += len(x_bD)
    assert best is not None
    total = int(rows.all_reduce(torch.tensor(seen, device=best.device)))
    if total < count:
        raise UserError(f"{count:,} centroids are wanted of {total:,} rows; raise sample_rows or lower the number")
    return largest_keys(best, count, rows)[:, 1:].to(dtype).contiguous()
