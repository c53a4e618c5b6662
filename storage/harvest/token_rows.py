"""Map pieces of text to rows: the model's inputs, and the vectors that are stored.

Legend of shapes: B pieces of a batch, T tokens (padded), D width, R rows, N tokens in all, P pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch

from lexray.storage.harvest.layout import Inputs
from lexray.storage.harvest.pieces import TokenPieces
from lexray.storage.harvest.plan import ShardTask, batches

TEXT_TOKEN = -1
"""Token id of a row that is a whole text."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """The rows of a task in the order of its pieces."""

    pieces: np.ndarray
    """Piece of each row, ascending (R)."""
    tokens: np.ndarray
    """Index of its vector in the piece (R)."""
    columns: dict[str, np.ndarray]
    """Columns stored with each row (R)."""


class RowMaker(Protocol):
    """Maps the pieces of a corpus to inputs of a model, and its vectors to rows."""

    def inputs(self, pieces: Any, numbers: np.ndarray) -> dict[str, torch.Tensor]: ...

    def batches(self, pieces: Any, batch_tokens: int) -> list[np.ndarray]: ...

    def fitted(self, inputs: Inputs, states: dict[str, torch.Tensor]) -> RowMaker:
        """Return a row maker adapted to the models' states for a first batch."""
        ...

    def layout(self, task: ShardTask) -> RowLayout: ...

    def pick(self, x_BTD: torch.Tensor, inputs: Inputs, pieces: np.ndarray, tokens: np.ndarray) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class TokenRows:
    """A row for each token, except those of `dropped_ids`."""

    pad_id: int
    dropped_ids: np.ndarray
    """Token ids that are not stored as rows."""
    pads: bool = True
    """Whether pieces of different lengths are batched."""

    def inputs(self, pieces: TokenPieces, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        """Return the pieces of these numbers padded on the right (B, T), and their attention mask (B, T)."""
        return pad(pieces.ids(numbers), self.pad_id)

    def batches(self, pieces: TokenPieces, batch_tokens: int) -> list[np.ndarray]:
        return batches(pieces.lengths, batch_tokens, pads=self.pads)

    def fitted(self, inputs: Inputs, states: dict[str, torch.Tensor]) -> TokenRows:
        return self

    def layout(self, task: ShardTask) -> RowLayout:
        assert isinstance(task.pieces, TokenPieces)
        lengths, ids = task.pieces.lengths, task.pieces.token_ids
        kept = ~np.isin(ids, self.dropped_ids)
        piece = np.repeat(np.arange(len(lengths)), lengths)
        begins = np.cumsum(lengths) - lengths
        before: np.ndarray = np.cumsum(kept) - kept  # rows before each token, over all pieces
        kept &= before - before[begins][piece] < task.rows[piece]
        tokens = (np.arange(len(ids)) - begins[piece])[kept]
        columns = {"token_id": ids[kept], "position": tokens, "document": task.pieces.documents[kept]}
        return RowLayout(pieces=piece[kept], tokens=tokens, columns=columns)

    def pick(self, x_BTD: torch.Tensor, inputs: Inputs, pieces: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Return the rows (R, D): vectors `tokens` of the batch's pieces `pieces`."""
        return x_BTD[torch.from_numpy(pieces), torch.from_numpy(tokens)]


@dataclass(frozen=True, kw_only=True)
class PooledRows(TokenRows):
    """A row for each piece, which is then the start of a text."""

    pooling: Literal["mean", "cls", "last"]

    def layout(self, task: ShardTask) -> RowLayout:
        assert isinstance(task.pieces, TokenPieces)
        lengths = task.pieces.lengths
        begins, numbers = np.cumsum(lengths) - lengths, np.arange(len(lengths))
        zeros = np.zeros(len(lengths), dtype=np.int32)
        columns = {"token_id": zeros + TEXT_TOKEN, "position": zeros, "document": task.pieces.documents[begins]}
        return RowLayout(pieces=numbers, tokens=lengths - 1 if self.pooling == "last" else zeros, columns=columns)

    def pick(self, x_BTD: torch.Tensor, inputs: Inputs, pieces: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """Return rows (R, D): one vector, or the mean over real tokens, special ones included, as sentence encoders."""
        if self.pooling != "mean":
            return super().pick(x_BTD, inputs, pieces, tokens)
        mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(torch.float32)
        mean_BD = (x_BTD.float() * mask_BT1).sum(1) / mask_BT1.sum(1)
        return mean_BD[torch.from_numpy(pieces)]


def pad(token_ids: list[np.ndarray], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad pieces of (T) ids each to one batch."""
    longest = max(len(ids) for ids in token_ids)
    padded_BT = np.full((len(token_ids), longest), pad_id, dtype=np.int64)
    mask_BT = np.zeros((len(token_ids), longest), dtype=np.int64)
    for row, ids in enumerate(token_ids):
        padded_BT[row, : len(ids)] = ids
        mask_BT[row, : len(ids)] = 1
    return {"input_ids": torch.from_numpy(padded_BT), "attention_mask": torch.from_numpy(mask_BT)}
