"""What a user says of a source that its files do not say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from lexray.storage.errors import UserError
from lexray.storage.imports.array_files import RawFormat
from lexray.storage.imports.rows import SiteNames

Meaning = Literal["rows", "sites"]
"""Whether things side by side are runs of rows of the same sites, or one site each."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `lexray data import`."""

    names: SiteNames = field(default_factory=SiteNames)
    document_rows: int | None = None
    """Rows of a document where the source names none."""
    files: Meaning | None = None
    """What files side by side are; None: decided by their names, refused where those leave it open."""
    lists: Meaning | None = None
    """What the tensors of a list are; None: a list is refused."""
    raw: RawFormat | None = None
    """Format of files that hold raw numbers."""


def meaning(value: str | None, option: str) -> Meaning | None:
    """The value of `--files` or `--lists`. Raises UserError for others."""
    for known in get_args(Meaning):
        if value == known:
            return known
    if value is not None:
        raise UserError(f"{option}: {value!r} is none of {', '.join(get_args(Meaning))}")
    return None
