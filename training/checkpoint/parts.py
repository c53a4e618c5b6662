"""Assign the rows of a checkpoint to the ranks that write them and to the ranks that read them: pure functions.

Every tensor of a training's state has one name and one whole shape, whatever the mesh. Those with a row for each latent
are cut along the feature axis first; then the ranks of a data group, which hold the same rows, share the writing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from lexray.training.mesh.mesh import MeshCoord

WEIGHTS, MOMENTS = "weights/", "moments/"
"""Prefixes of the keys of a checkpoint's tensors: parameters and buffers; Adam's moments."""


class Shard(NamedTuple):
    """Contiguous rows of a full tensor; a scalar is one row."""

    start: int
    whole_rows: int
    tensor: Tensor


@dataclass(frozen=True)
class ShardSpec:
    """The shard of a training state that belongs to one rank of a mesh."""

    place: MeshCoord
    split: frozenset[str]
    """Names of the tensors with a row for each latent."""

    def is_split(self, key: str) -> bool:
        """Return whether the feature axis splits this tensor."""
        name = key.removeprefix(WEIGHTS)
        if key.startswith(MOMENTS):
            name = key.removeprefix(MOMENTS).split(".", 1)[1]  # exp_avg.NAME
        return self.place.feature > 1 and name in self.split

    def to_write(self, state: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Shard]]:
        """Yield the rows that this rank writes of its state; the ranks together write each row once."""
        place = self.place
        for key, tensor in state:
            cut = self.is_split(key)
            if not cut and place.feature_index:
                continue
            rows = len(tensor) if tensor.ndim else 1
            begin, end = (rows * i // place.data for i in (place.data_index, place.data_index + 1))
            if begin == end:
                continue
            first = rows * place.feature_index if cut else 0
            part = tensor[begin:end] if tensor.ndim else tensor
            yield key, Shard(first + begin, rows * place.feature if cut else rows, part)

    def to_read(self, key: str, whole_rows: int) -> range:
        """Return the range of rows of a full tensor that this rank holds."""
        if not self.is_split(key):
            return range(whole_rows)
        assert whole_rows % self.place.feature == 0, (key, whole_rows, self.place.feature)
        rows = whole_rows // self.place.feature
        return range(self.place.feature_index * rows, (self.place.feature_index + 1) * rows)


WHOLE = ShardSpec(MeshCoord(rank=0, data=1, feature=1), frozenset())
"""The shard of a single process: all rows."""
