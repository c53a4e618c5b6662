"""Options of an import: facts about a source that its files do not state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from lexray.storage.errors import UserError
from lexray.storage.imports.array_files import RawFormat
from lexray.storage.imports.rows import SiteNames

Meaning = Literal["rows", "sites"]
"""Whether parallel files or tensors are consecutive rows of the same sites, or one site each."""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `lexray data import`."""

    names: SiteNames = field(default_factory=SiteNames)
    document_rows: int | None = None
    """Rows of a document where the source does not state documents."""
    files: Meaning | None = None
    """Meaning of files in one folder; None: decided by their names, refused where these are ambiguous."""
    lists: Meaning | None = None
    """Meaning of the tensors of a list; None: a list is refused."""
    raw: RawFormat | None = None
    """Format of files that hold raw numbers."""


def meaning(value: str | None, option: str) -> Meaning | None:
    """Parse the value of `--files` or `--lists`. Raises UserError for other values."""
    for known in get_args(Meaning):
        if value == known:
            return known
    if value is not None:
        raise UserError(f"{option}: {value!r} is none of {', '.join(get_args(Meaning))}")
    return None
