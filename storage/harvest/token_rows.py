"""Map pieces of text, or images, to rows: the model's inputs, and the vectors that are stored.

Legend of shapes: B pieces of a batch (or images), T tokens (padded), D width, R rows, N tokens in all, P pieces.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.layout import Inputs, pad_texts
from lexray.storage.harvest.pieces import TokenPieces
from lexray.storage.harvest.plan import ImagePieces, ShardTask, batches

TEXT_TOKEN = -1
"""Token id of a row that is a whole text."""
PATCH, CLASS_TOKEN, REGISTER = -1, -2, -3
"""Token ids of rows of images; the last two are special."""


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


@dataclass(frozen=True, kw_only=True)
class PatchRows:
    """A row for each patch, and for class and register tokens where `keeps_special`."""

    processor: Any
    """Makes the model's input of pictures."""
    patch_size: tuple[int, int]
    """Pixels, height and width."""
    keeps_special: bool
    num_patches: int = 0
    """Patches of an image; 0 until fitted."""
    num_special: int = 0
    """Tokens in front of the patches."""

    def inputs(self, pieces: ImagePieces, numbers: np.ndarray) -> dict[str, torch.Tensor]:
        """`pixel_values` (B, channels, height, width). Raises UserError when images come out in several sizes."""
        pictures = [decode_image(pieces.images[n], pieces.names[n]) for n in numbers]
        refusal = "images: the model's image processor makes no batch of them"
        with as_user_error(lambda error: f"{refusal} ({one_line(error)})", ValueError):
            pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        if self.num_patches and self._patches(pixels) != self.num_patches:
            raise UserError(
                f"images: the model's image processor makes {self._patches(pixels)} patches of one image and "
                f"{self.num_patches} of another; it must give all the same size"
            )
        return {"pixel_values": pixels}

    def batches(self, pieces: ImagePieces, batch_tokens: int) -> list[np.ndarray]:
        size = max(1, batch_tokens // (self.num_patches + self.num_special))
        numbers = np.arange(len(pieces.images))
        return [numbers[start : start + size] for start in range(0, len(numbers), size)]

    def fitted(self, inputs: Inputs, states: dict[str, torch.Tensor]) -> PatchRows:
        """Itself knowing how many tokens an image has. Raises UserError for a site that has not one vector for each."""
        num_patches = self._patches(inputs["pixel_values"])
        tokens = {name: x_BTD.shape[1] for name, x_BTD in states.items()}
        most = max(tokens.values())
        for name, count in tokens.items():
            if count != most or count < num_patches:
                raise UserError(
                    f"sites.{name}: has {count} vectors for an image of {num_patches} patches, "
                    f"expected {max(most, num_patches)}; choose another module"
                )
        return replace(self, num_patches=num_patches, num_special=most - num_patches)

    def _patches(self, pixels: torch.Tensor) -> int:
        height, width = pixels.shape[-2:]
        return int(height // self.patch_size[0]) * int(width // self.patch_size[1])

    @property
    def rows_per_image(self) -> int:
        return self.num_patches + (self.num_special if self.keeps_special else 0)

    def layout(self, task: ShardTask) -> RowLayout:
        """Rows of an image in the order of the model's tokens: class token, registers, patches."""
        assert isinstance(task.pieces, ImagePieces)
        special = np.array([CLASS_TOKEN, *[REGISTER] * self.num_special][: self.num_special], dtype=np.int32)
        kinds = np.concatenate([special, np.full(self.num_patches, PATCH, dtype=np.int32)])
        places = np.concatenate([np.arange(self.num_special), np.arange(self.num_patches)])
        first = 0 if self.keeps_special else self.num_special
        tokens = np.concatenate([np.arange(first, first + rows) for rows in task.rows])
        pieces = np.repeat(np.arange(len(task.rows)), task.rows)
        columns = {"token_id": kinds[tokens], "position": places[tokens], "document": task.pieces.documents[pieces]}
        return RowLayout(pieces=pieces, tokens=tokens, columns=columns)

    def pick(self, x_BTD: torch.Tensor, inputs: Inputs, pieces: np.ndarray, tokens: np.ndarray) -> torch.Tensor:
        """The rows (R, D) that are vector `tokens` of the batch's image `pieces`."""
        return x_BTD[torch.from_numpy(pieces), torch.from_numpy(tokens)]


def decode_image(data: bytes, name: str) -> Any:
    """Decode an image as RGB (the first frame of an animation). Raises UserError when it is invalid or too large."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UserError(f"images: {name} is empty")
    with (
        as_user_error(lambda error: f"images: {name} is not an image that can be read ({one_line(error)})"),
        as_user_error(lambda _: f"images: {name} is not an image of a kind that can be read", UnidentifiedImageError),
        warnings.catch_warnings(action="ignore"),  # about odd metadata, or about half of the maximum pixels
    ):
        return Image.open(io.BytesIO(data)).convert("RGB")


def pad(token_ids: list[np.ndarray], pad_id: int) -> dict[str, torch.Tensor]:
    """Pad pieces of (T) ids each to one batch."""
    return pad_texts([torch.from_numpy(ids.astype(np.int64)) for ids in token_ids], pad_id)
