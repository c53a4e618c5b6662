"""Images of a task, and their decoding."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from lexray.storage.errors import UserError, one_line

PATCH, CLASS_TOKEN, REGISTER = -1, -2, -3
"""Token ids of rows of images; the last two are special."""


@dataclass(frozen=True, kw_only=True)
class ImagePieces:
    """Images of a task, sent to a replica."""

    images: list[bytes]
    """Encoded bytes of each image (P)."""
    names: list[str]
    """Name of each image in errors (P)."""
    documents: np.ndarray
    """Number of each image in the corpus (P), int32."""

    def __len__(self) -> int:
        return len(self.images)


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
