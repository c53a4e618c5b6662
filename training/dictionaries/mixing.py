"""Classes that join a frame (which sites, what atoms) with a code (how latents become active)."""

from __future__ import annotations

from lexray.training.dictionaries.base import Dictionary


def with_codes(frame: type[Dictionary], *codes: type[Dictionary]) -> dict[str, type[Dictionary]]:
    """A class for each code, by its architecture: the frame's methods first, then the code's."""
    return {code.Config.architecture: type(f"{code.__name__}{frame.__name__}", (frame, code), {}) for code in codes}
