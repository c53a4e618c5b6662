"""The sizes that a rank's part of a dictionary has; nothing is allocated to know them."""

from __future__ import annotations

from typing import NamedTuple


class Shapes(NamedTuple):
    """Numbers in a rank's slice of a dictionary."""

    parameters: int
    """Numbers that are learned by gradient."""
    largest: int
    """Numbers of the largest parameter."""
    buffer_bytes: int
    latents: int
    input_width: int
    output_width: int

    @property
    def atoms(self) -> int:
        """Numbers of the atoms (F x O)."""
        return self.latents * self.output_width
