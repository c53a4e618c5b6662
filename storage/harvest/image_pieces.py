"""A few images on their way to a model."""

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
    """A few images, to be sent to who runs the model."""

    images: list[bytes]
    """Each as its file (P)."""
    names: list[str]
    """What to call each in errors (P)."""
    documents: np.ndarray
    """Number of each image in the corpus (P), int32."""

    def __len__(self) -> int:
        return len(self.images)


def decode_image(data: bytes, name: str) -> Any:
    """The picture as RGB, of an animation the first. Raises UserError when the file is not one, or is too large."""
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise UserError(f"images: {name} is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata that is odd, or of half of the most pixels
            return Image.open(io.BytesIO(data)).convert("RGB")
    except UnidentifiedImageError as error:
        raise UserError(f"images: {name} is not an image of a kind that can be read") from error
    except Exception as error:  # a damaged file makes its decoder raise anything
        raise UserError(f"images: {name} is not an image that can be read ({one_line(error)})") from error
