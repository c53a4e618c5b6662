"""From images to rows: a vision model's inputs, and which of its vectors are rows.

Legend of shapes: B images of a batch, T tokens, D width, R rows, P images of a task.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from lexray.storage.errors import UserError, as_user_error, one_line
from lexray.storage.harvest.layout import Inputs
from lexray.storage.harvest.plan import ImagePieces, ShardTask
from lexray.storage.harvest.token_rows import RowLayout

PATCH, CLASS_TOKEN, REGISTER = -1, -2, -3
"""Token ids of rows of images; the last two are special."""


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, or about half of the maximum pixels
            return Image.open(io.BytesIO(data)).convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"images: {name} is not an image of a kind that can be read") from error
    except Exception as error:  # decoders raise any exception for a damaged file
        raise UserError(f"images: {name} is not an image that can be read ({one_line(error)})") from error
